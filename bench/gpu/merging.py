"""Whole merges on a GPU, files in memory, against the floors of moving their bytes once and against mergekit.

    python bench/gpu/run.py merging [--limit SECONDS]

Floors: every input byte read by all cores; every output byte written to a new file by one thread; every input byte
copied to the GPU while every output byte comes back, between page-locked memory and the card. What a merge is compared
with is the slower of the first and the last. Merge and floors alternate in one process, whose first merge is not
counted: it makes the CUDA context and compiles. Memory is what torch's allocator takes of the card, and what of the
card is in use while the uncounted merge runs: the context, modules and cuFFT's own too, and what other processes have.
The floors' buffers are taken off both.

The 7B shape comes whole, the 13B shape with few layers, by all methods, and with as many as memory holds, by two: start
and end, which take a tenth of a second, weigh on the few alone.

Files lie in a tmpfs of huge pages where this process may mount one, and one merge's in /dev/shm as well, where a system
takes three times as long to write a new file.
"""

from __future__ import annotations

import argparse
import json
import math
import mmap
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import by_mergekit
import torch
from family import SIZES, Size, config, tensors
from harness import BUFFER, read_all, run_process, save, seconds
from timing import DEVICE, machine

import fastmerge as fm
from fastmerge.formats.layout import plan_layout

IN_MEMORY = Path("/dev/shm")
CORES = len(os.sched_getaffinity(0))
WRITERS, STAGED = 8, 32 << 20  # threads that write a family, and bytes each brings from the GPU at a time
ROUNDS = 3
PERIOD = 0.005  # seconds between two looks at the card's memory
JOBS: dict[str, dict[str, float]] = {
    "task_arithmetic": {"weights": 0.3},
    "emr": {},
    "ties": {"density": 0.2},
    "dare_ties": {"density": 0.5},
    "fr": {},
}
WHOLE = ("task_arithmetic", "emr")
FEW = 8  # layers
# Of each shape: layers, or fewer where memory does not hold them, models, and methods.
RUNS: tuple[tuple[str, int, tuple[int, ...], tuple[str, ...]], ...] = (
    ("7b", FEW, (2, 6), ("emr",)),  # for the memory of the card
    ("7b", SIZES["7b"].layers, (3,), WHOLE),
    ("13b", SIZES["13b"].layers, (3,), WHOLE),
    ("13b", FEW, (3,), tuple(JOBS)),  # and by mergekit
)
BY_MERGEKIT = ("task_arithmetic", "ties")
HELD = 0.8  # of the memory that is free, what files may take


def write(folder: Path, models: int, layers: int, size: Size) -> list[Path]:
    """The folders of a base and fine-tunes in bfloat16."""
    shapes = list(tensors(layers, size))
    layout = plan_layout([(name, "BF16", shape) for name, shape in shapes])
    folders = [folder / "base", *(folder / f"model{k}" for k in range(models))]
    for number, target in enumerate(folders):
        target.mkdir(parents=True)
        memory = {}
        for file in layout.files:
            with (target / file.name).open("wb+") as stream:
                stream.truncate(file.size)
                stream.write(file.header)
                stream.flush()
                memory[file.name] = mmap.mmap(stream.fileno(), file.size)
        jobs = []
        for seed, (name, shape) in enumerate(shapes):
            place = layout.places[name]
            to = torch.frombuffer(memory[place.file], dtype=torch.uint8)[place.start : place.stop]
            jobs.append((to, seed, number, torch.Size(shape).numel()))
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(_fill, jobs))
        if layout.index:
            (target / layout.index_name).write_bytes(layout.index)
        (target / "config.json").write_text(json.dumps(config(layers, size)))
    return folders


def _fill(job: tuple[torch.Tensor, int, int, int]) -> None:
    to, seed, number, n = job
    generator = torch.Generator(DEVICE)

    def noise(seed: int) -> torch.Tensor:
        return torch.randn(n, generator=generator.manual_seed(seed), device=DEVICE, dtype=torch.bfloat16)

    values = 0.02 * noise(seed)
    if number:
        values += 0.002 * number * noise(seed + 100_000 * number)
    stage = torch.empty(STAGED, dtype=torch.uint8, pin_memory=True)
    for target, source in zip(to.split(STAGED), values.view(torch.uint8).split(STAGED), strict=True):
        target.numpy()[:] = stage[: len(source)].copy_(source).numpy()


class Link:
    """Copies between page-locked memory and the card, both ways at once."""

    def __init__(self, piece: int = 256 << 20) -> None:
        self.host = [torch.empty(piece, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self.card = [torch.empty(piece, dtype=torch.uint8, device=DEVICE) for _ in range(2)]
        self.streams = [torch.cuda.Stream() for _ in range(2)]

    @property
    def card_bytes(self) -> int:
        return sum(memory.nbytes for memory in self.card)

    def move(self, incoming: int, outgoing: int) -> None:
        ways = ((incoming, self.card[0], self.host[0]), (outgoing, self.host[1], self.card[1]))
        for stream, (nbytes, to, source) in zip(self.streams, ways, strict=True):
            with torch.cuda.stream(stream):
                for start in range(0, nbytes, len(source)):
                    size = min(len(source), nbytes - start)
                    to[:size].copy_(source[:size], non_blocking=True)
        torch.cuda.synchronize()


def write_floor(file: Path, nbytes: int) -> None:
    block = memoryview(os.urandom(BUFFER))
    with file.open("wb", buffering=0) as stream:
        for _ in range(-(-nbytes // BUFFER)):
            stream.write(block)
    file.unlink()


@contextmanager
def files_in_memory() -> Iterator[tuple[str, Path]]:
    """What is there, and a folder in it."""
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "huge=always,size=95%", "fastmerge", folder]
        if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
            try:
                yield "tmpfs, huge pages", Path(folder)
            finally:
                subprocess.run(["umount", folder], check=True)
            return
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        yield "tmpfs", Path(folder)


def used_during(do: Callable[[], object]) -> int:
    """The most bytes of the card that are in use meanwhile, as far as looking each few milliseconds shows."""
    used, done = list[int](), threading.Event()

    def look() -> None:
        while not used or not done.wait(PERIOD):
            free, total = torch.cuda.mem_get_info()
            used.append(total - free)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        do()
    finally:
        done.set()
        looking.join()
    return max(used)


def layers_held(size: Size, models: int, folder: Path) -> int:
    """As many layers as memory, and a folder there, hold of the files of a base, models and their merge; 0 for none."""
    meminfo = Path("/proc/meminfo").read_text()
    free = int(re.findall(r"MemAvailable: *(\d+) kB", meminfo)[0]) << 10
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # where there is none
            free = min(free, int(Path(limit).read_text()))
    there = os.statvfs(folder)  # files that it has no room for would end the process where they are filled
    free = min(free, there.f_bavail * there.f_frsize)
    outside, layer = (2 * sum(torch.Size(shape).numel() for _, shape in tensors(n, size)) for n in (0, 1))
    fit = (HELD * free / (models + 2) - outside) / (layer - outside)
    return max(0, min(size.layers, int(fit)))


def files_of(folders: Sequence[Path]) -> list[Path]:
    return [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]


def job(method: str, params: dict[str, float], folders: list[Path], scratch: Path, link: Link) -> dict[str, Any]:
    """One method, alternating with the floors."""
    base, *models = folders
    named = {model.name: model for model in models}
    out, files = scratch / "out", files_of(folders)
    times: dict[str, list[float]] = {"seconds": [], "read_seconds": [], "link_seconds": [], "write_seconds": []}
    merge = partial(fm.merge, method, base, named, out, params, device=DEVICE)
    for turn in range(1 + ROUNDS):
        clear(scratch)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        if turn == 0:
            used = used_during(merge)
            continue
        report = merge()
        times["seconds"].append(report.seconds)
        times["read_seconds"].append(seconds(lambda: read_all(files, CORES)))
        link_bytes = report.bytes_read, report.bytes_written
        times["link_seconds"].append(seconds(lambda sizes=link_bytes: link.move(*sizes)))  # type: ignore[misc]
    shutil.rmtree(out)
    times["write_seconds"].append(seconds(lambda: write_floor(scratch / "floor", report.bytes_written)))
    floors = map(max, times["read_seconds"], times["link_seconds"])
    return {
        "method": method,
        "k": len(models),
        "gigabytes": (report.bytes_read + report.bytes_written) / 1e9,
        **{name: statistics.median(values) for name, values in times.items()},
        "of_floor": statistics.median(took / floor for took, floor in zip(times["seconds"], floors, strict=True)),
        "gpu_mib": (torch.cuda.max_memory_reserved() - link.card_bytes) >> 20,
        "gpu_used_mib": (used - link.card_bytes) >> 20,
    }


def against_mergekit(method: str, folders: list[Path], scratch: Path) -> dict[str, Any]:
    """Both by the command line on this GPU, from their starts to their ends."""
    base, *models = folders
    recipe, out = scratch / "recipe.yaml", scratch / "out"
    own = {"scale": 0.3} if method == "task_arithmetic" else JOBS[method]
    recipe.write_text(json.dumps(by_mergekit.recipe(method, own, base, models)))
    params = [part for name, value in JOBS[method].items() for part in ("-p", f"{name}={value}")]
    named = [part for model in models for part in ("--model", f"{model.name}={model}")]
    mine = ["merge", method, "--base", str(base), *named, *params, "--out", str(out), "--device", DEVICE]
    commands = {
        "mergekit": [shutil.which("mergekit-yaml"), str(recipe), str(out), "--cuda", *by_mergekit.FLAGS],
        "fastmerge": [sys.executable, "-m", "fastmerge", *mine],
    }
    took = {}
    for name, command in commands.items():
        clear(scratch)
        took[f"{name}_seconds"] = run_process(command, by_mergekit.environment()).seconds
    return {"command": method, "k": len(models), **took}


def clear(scratch: Path) -> None:
    """Remove what a merge leaves."""
    for left in ("out", ".fastmerge"):
        shutil.rmtree(scratch / left, ignore_errors=True)


def made(scratch: Path, kind: str, name: str, layers: int, models: int) -> tuple[list[Path], dict[str, Any]]:
    """A family in `scratch`, and what a row says of it."""
    took = seconds(lambda: write(scratch, models, layers, SIZES[name]))
    print(f"{name}, {layers} layers, {models} models: written in {took:.1f} s", flush=True)
    folders = [scratch / "base", *(scratch / f"model{k}" for k in range(models))]
    return folders, {"size": name, "layers": layers, "files": kind}


def rows(limit: float = math.inf) -> Iterator[dict[str, Any]]:
    """What begins within so many seconds is measured; the rest is named."""
    link, end = Link(), time.monotonic() + limit

    def late(what: str) -> bool:
        over = time.monotonic() > end
        if over:
            print(f"left out, since the time is up: {what}", flush=True)
        return over

    def held(name: str, layers: int, models: int, folder: Path) -> int:
        fit = min(layers, layers_held(SIZES[name], models, folder))
        if not fit:
            print(f"left out, since {folder} has no room for it: {name}, {models} models", flush=True)
        return fit

    for name, most, counts, methods in RUNS:
        if late(f"{name}, up to {most} layers, by {', '.join(methods)}"):
            continue
        with files_in_memory() as (kind, scratch):
            layers = held(name, most, max(counts), scratch)
            if not layers:
                continue
            folders, family = made(scratch, kind, name, layers, max(counts))
            for method in methods:
                for k in counts:
                    if not late(f"{name}, {layers} layers, {k} models, by {method}"):
                        yield family | job(method, JOBS[method], folders[: k + 1], scratch, link)
            for method in BY_MERGEKIT if methods == tuple(JOBS) and shutil.which("mergekit-yaml") else ():
                if not late(f"{method} by mergekit"):
                    yield family | against_mergekit(method, folders, scratch)
    if late(f"7b, {FEW} layers, by task_arithmetic, in {IN_MEMORY}"):
        return
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        if layers := held("7b", FEW, 3, Path(folder)):
            folders, family = made(Path(folder), "tmpfs", "7b", layers, 3)
            yield family | job("task_arithmetic", JOBS["task_arithmetic"], folders, Path(folder), link)


def show(row: dict[str, Any]) -> None:
    if "command" in row:
        theirs, ours = row["mergekit_seconds"], row["fastmerge_seconds"]
        print(
            f"{row['size']:>4s} {row['layers']} layers {row['command']}, command: {ours:.1f} s, mergekit {theirs:.1f} s"
        )
        return
    print(
        f"{row['size']:>4s} {row['layers']:2d} layers, {row['files']:17s} {row['method']:16s} K={row['k']}  "
        f"{row['gigabytes']:6.1f} GB  "
        f"{row['seconds']:6.2f} s  {row['gigabytes'] / row['seconds']:5.1f} GB/s  floors: "
        f"read {row['read_seconds']:.2f}, link {row['link_seconds']:.2f}, write {row['write_seconds']:.2f} s  "
        f"{row['of_floor']:5.2f} of floor  {row['gpu_mib']:5d} MiB, {row['gpu_used_mib']} in use",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds; what has not begun by then is left out")
    found = []
    try:
        for measured in rows(parser.parse_args().limit):
            found.append(measured)
            show(measured)
    finally:  # what has been measured counts
        if found:
            print(f"kept in {save('gpu-merging', found, cores=CORES, **machine())}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
