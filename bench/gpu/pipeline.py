"""Where the time of a whole merge goes on a GPU, and what other settings of the pipeline make of it.

    python bench/gpu/run.py pipeline

Few layers of the 13B shape, base and three models, files in memory as in merging.py. First the stages of one merge by
each of two methods: how often each was entered, when it began and ended, counted from the start, and the seconds that
all threads spent in it; of another merge the seconds of cores that each kind of thread used, and that nobody did. Then,
by one method, each setting in turn has other values, between which and what there is merges alternate: medians, and the
ratio to what there is.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from itertools import chain
from typing import Any

from cores import busy
from harness import save
from merging import CORES, FEW, JOBS, WHOLE, clear, files_in_memory, made
from timing import DEVICE, machine

import fastmerge as fm
from fastmerge.engine import devices, feed, memory_file, merge, outlet, pipeline, publish, writer

SIZE, MODELS, ROUNDS = "13b", 3, 3
SWEPT = "emr"
# What of the engine is a stage: its name, what has it, and under which name. In the order in which they begin.
STAGES: tuple[tuple[str, Any, str], ...] = (
    ("open devices", merge, "open_devices"),
    ("create files", writer.Writer, "__init__"),
    ("works, first to last", pipeline.Pipeline, "run"),
    ("staging memory", devices.Cuda, "staging"),
    ("start readers", devices.Cuda, "loader"),
    ("memory of a load", feed.Feed, "_fit"),
    ("order a load", feed.Feed, "_begun"),
    ("wait for a load", feed.Feed, "arrived"),
    ("launch a load", pipeline._Run, "_load"),
    ("wait for a slot", outlet.Outlet, "slot"),
    ("write a piece", outlet.DeviceSlot, "write"),
    ("end readers", feed.Feed, "__exit__"),
    ("end writers", writer.Writer, "__exit__"),
    ("end maps", memory_file.MemoryFile, "close"),
    ("publish", publish.Publication, "_publish"),
)
MIB = 1 << 20
# A setting's name, what has it, and other values for it.
SETTINGS: tuple[tuple[str, tuple[Any, ...], tuple[int, ...]], ...] = (
    ("MEMORY", (pipeline,), (440 * MIB, 880 * MIB, 3520 * MIB)),
    ("SLOTS", (pipeline.Pipeline,), (4, 8, 12)),
    ("WRITERS", (pipeline.Pipeline,), (3, 5, 6)),
    ("STAGING", (pipeline,), (16 * MIB, 32 * MIB, 48 * MIB, 64 * MIB, 128 * MIB)),
    ("PART", (pipeline,), (1 * MIB, 4 * MIB)),
    ("READERS", (feed,), (8, 12, 14)),
    ("ROOMS", (feed, pipeline), (2, 3, 5)),
    ("PIECE", (writer,), (8 * MIB, 32 * MIB)),
)


@dataclass
class Stage:
    """When, in seconds, a stage was first entered, first left and last left, and how long it took all threads."""

    name: str
    calls: int = 0
    begun: float = 0.0
    first_end: float = 0.0
    end: float = 0.0
    seconds: float = 0.0


@contextmanager
def watched() -> Iterator[list[Stage]]:
    """The stages of what is done meanwhile."""
    found, start, lock = [Stage(name) for name, _, _ in STAGES], time.perf_counter(), threading.Lock()
    own = [getattr(holder, name) for _, holder, name in STAGES]

    def timed(stage: Stage, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            begin = time.perf_counter() - start
            try:
                return function(*args, **options)
            finally:
                end = time.perf_counter() - start
                with lock:
                    if not stage.calls:
                        stage.begun, stage.first_end = begin, end
                    stage.calls += 1
                    stage.end = end
                    stage.seconds += end - begin

        return call

    try:
        for stage, (_, holder, name), function in zip(found, STAGES, own, strict=True):
            setattr(holder, name, timed(stage, function))
        yield found
    finally:
        for (_, holder, name), function in zip(STAGES, own, strict=True):
            setattr(holder, name, function)


@contextmanager
def changed(holders: tuple[Any, ...], name: str, value: int) -> Iterator[None]:
    """A setting with another value."""
    before = getattr(holders[0], name)
    try:
        for holder in holders:
            setattr(holder, name, value)
        yield
    finally:
        for holder in holders:
            setattr(holder, name, before)


def staged(do: Callable[[], fm.Report]) -> list[dict[str, Any]]:
    """The stages of a merge."""
    with watched() as found:
        report = do()
    return [asdict(stage) for stage in found if stage.calls] + [{"name": "all", "seconds": report.seconds}]


def swept(do: Callable[[], fm.Report]) -> Iterator[dict[str, Any]]:
    """Each setting's values beside the one that there is."""
    for name, holders, values in SETTINGS:
        now = getattr(holders[0], name)
        times: dict[int, list[float]] = {value: [] for value in (now, *values)}
        for _ in range(ROUNDS):
            for value, taken in times.items():
                with changed(holders, name, value):
                    taken.append(do().seconds)
        for value in values:
            pairs = zip(times[value], times[now], strict=True)
            yield {
                "setting": name,
                "value": value,
                "now": now,
                "seconds": statistics.median(times[value]),
                "ratio": statistics.median(took / before for took, before in pairs),
            }


def rows() -> Iterator[dict[str, Any]]:
    with files_in_memory() as (kind, scratch):
        (base, *models), family = made(scratch, kind, SIZE, FEW, MODELS)
        for method in WHOLE:

            def do(method: str = method) -> fm.Report:
                clear(scratch)
                return fm.merge(
                    method, base, {model.name: model for model in models}, scratch / "out", JOBS[method], device=DEVICE
                )

            do()  # makes the context and compiles
            family |= {"method": method}
            for row in chain(staged(do), busy(do), swept(do) if method == SWEPT else ()):
                yield family | row
            shutil.rmtree(scratch / "out")


def show(row: dict[str, Any]) -> None:
    if "setting" in row:
        print(
            f"{row['method']:16s} {row['setting']:8s} {row['now']:>11,d} → {row['value']:>13,d}  "
            f"{row['seconds']:.3f} s, {row['ratio']:.3f} of the time",
            flush=True,
        )
    elif "threads" in row:
        if row["count"]:
            used = f"{row['user']:.2f} s of user's time, {row['system']:.2f} s of the system's"
        else:
            used = f"{row['idle']:.2f} s of all cores"
        print(f"{row['method']:16s} {row['threads']:24s} {row['count']:5d} ×  {used}", flush=True)
    elif "calls" in row:
        print(
            f"{row['method']:16s} {row['name']:24s} {row['calls']:5d} ×  from {row['begun']:.3f} s, first until "
            f"{row['first_end']:.3f}, last until {row['end']:.3f}  {row['seconds']:.3f} s of threads",
            flush=True,
        )
    else:
        print(f"{row['method']:16s} {row['name']:24s} {row['seconds']:.3f} s", flush=True)


def main() -> None:
    found = []
    try:
        for row in rows():
            found.append(row)
            show(row)
    finally:  # what has been measured counts
        if found:
            print(f"kept in {save('gpu-pipeline', found, cores=CORES, **machine())}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
