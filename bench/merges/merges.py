"""Whole merges by the command line, from the page cache, against the floor of moving their bytes once.

The floor reads every input byte (two threads, preadv into one buffer each) and writes every output byte past the page
cache; merge and floor alternate, and starting Python with torch is taken off the merge. Memory is what the process
holds beyond the mapped files.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from family import write
from harness import BUFFER, Process, read_all, run_process

JOBS: list[tuple[str, int, dict[str, float]]] = [
    ("linear", 3, {}),
    ("task_arithmetic", 3, {}),
    ("emr", 3, {}),
    ("ties", 3, {"density": 0.2}),
    ("dare_ties", 3, {"density": 0.5}),
    ("breadcrumbs", 3, {"density": 0.9, "gamma": 0.01}),
    ("della", 3, {"density": 0.5, "epsilon": 0.1}),
    ("model_stock", 3, {}),
    ("sce", 3, {}),
    ("ties", 3, {"density": 0.2, "prefilter.cutoff": 0.3}),
    ("fr", 3, {}),
    ("free", 3, {}),
    ("free", 3, {"rescale": 7.0}),
    ("emr", 12, {}),
]
SWEEP = (0.1, 0.2, 0.3, 0.5, 0.7)
PROGRAM = str(Path(sys.executable).with_name("fastmerge"))


def floor(files: list[Path], out_bytes: int, scratch: Path) -> float:
    block = mmap.mmap(-1, BUFFER)
    block.write(os.urandom(BUFFER))
    begin = time.perf_counter()
    read_all(files)
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_DIRECT", 0))
    for _ in range(-(-out_bytes // BUFFER)):
        os.write(fd, block)
    os.close(fd)
    took = time.perf_counter() - begin
    scratch.unlink()
    return took


def startup() -> float:
    """Starting Python with torch, and ending at once, as the command does; without what it leaves out of torch too."""
    code = "import os; from fastmerge.late import late_torch; late_torch(); import torch; os._exit(0)"
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - begin


def merge(arguments: list[str]) -> tuple[Process, dict[str, Any]]:
    """What the process took, and the merge's report."""
    done = run_process([PROGRAM, "merge", *arguments, "--json"])
    return done, json.loads(done.output)


def job(
    method: str, params: Mapping[str, float], folders: list[Path], scratch: Path, rounds: int = 3
) -> dict[str, Any]:
    """One method on a base and models, alternating with its floor."""
    base, *models = folders
    named = [part for model in models for part in ("--model", f"{model.name}={model}")]
    values = [part for name, value in params.items() for part in ("-p", f"{name}={value}")]
    arguments = [method, "--base", str(base), *named, *values, "--out", str(scratch / "out"), "--overwrite"]
    read = models if method == "linear" else folders
    files = [file for folder in read for file in sorted(folder.glob("*.safetensors"))]
    warm, report = merge(arguments)
    peak = warm.memory_mib
    floors, starts, merges = [], [], []
    for _ in range(rounds):
        floors.append(floor(files, report["bytes_written"], scratch / "floor"))
        starts.append(startup())
        for left in (".fastmerge", "out"):  # each merge gathers its statistics itself, and has no old output to remove
            shutil.rmtree(scratch / left, ignore_errors=True)
        done, report = merge(arguments)
        merges.append(done.seconds)
        peak = max(peak, done.memory_mib)
    start = statistics.median(starts)
    shutil.rmtree(scratch / "out")
    return {
        "method": ", ".join([method, *(f"{name} {value}" for name, value in params.items())]),
        "k": len(models),
        "gigabytes": (report["bytes_read"] + report["bytes_written"]) / 1e9,
        "seconds": statistics.median(merges),
        "startup_seconds": start,
        "floor_seconds": statistics.median(floors),
        "of_floor": statistics.median((m - start) / f for m, f in zip(merges, floors, strict=True)),
        "memory_mib": peak,
        "backend": report["backend"],
        "threads": len(os.sched_getaffinity(0)),
    }


def sweep(folders: list[Path], scratch: Path, rounds: int = 3) -> dict[str, Any]:
    """Several densities of TIES in one run, alternating with one density, start-up included in both."""
    base, *models = folders
    content = {
        "method": "ties",
        "base": str(base),
        "models": {model.name: str(model) for model in models},
        "outputs": {f"density{density}": {"density": density} for density in SWEEP},
    }
    recipe = scratch / "sweep.json"  # JSON is YAML
    recipe.write_text(json.dumps(content))
    single = scratch / "single.json"
    single.write_text(json.dumps({name: content[name] for name in ("method", "base", "models")}))
    times: dict[Path, list[float]] = {recipe: [], single: []}
    peak = 0.0
    for _ in range(rounds):
        for file, took in times.items():
            for left in (".fastmerge", "out"):
                shutil.rmtree(scratch / left, ignore_errors=True)
            done = run_process([PROGRAM, "run", str(file), "--out", str(scratch / "out"), "--json"])
            took.append(done.seconds)
            peak = max(peak, done.memory_mib)
    shutil.rmtree(scratch / "out")
    return {
        "sweep": f"ties, densities {', '.join(map(str, SWEEP))}",
        "k": len(models),
        "seconds": statistics.median(times[recipe]),
        "single_seconds": statistics.median(times[single]),
        "of_single": statistics.median(a / b for a, b in zip(*times.values(), strict=True)),
        "memory_mib": peak,
    }


def run(folder: Path | None = None) -> list[dict[str, Any]]:
    """All jobs. K = 12 uses shorter models, so that the family fits where three do."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        root = Path(scratch)
        rows = []
        for layers, wanted in ((22, 3), (5, 12)):
            folders = write(root / f"family{layers}", wanted, layers)
            rows += [job(method, params, folders, root) for method, k, params in JOBS if k == wanted]
            if wanted == 3:
                rows.append(sweep(folders, root))
            shutil.rmtree(root / f"family{layers}")
    return rows
