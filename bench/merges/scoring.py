"""The scoring pass of a Frank-Wolfe step over a pool on disk, against reading the same bytes.

Both are from the page cache and alternate in one process: the reading by two threads into one buffer each, the pass
with a gradient in float32. Memory is the peak of what is no file's during the pass, beyond what was there before it.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from family import tensors, write
from harness import anonymous_mib, read_all, seconds

from fastmerge.fw.candidates import Candidates
from fastmerge.fw.matching import Slot

POOL, LAYERS, ROUNDS = 16, 4, 15


def run(folder: Path | None = None, *, layers: int = LAYERS, pool: int = POOL) -> list[dict[str, Any]]:
    """One row: medians over rounds, after one that warms the page cache."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        members = write(Path(scratch), pool - 1, layers)
        candidates = Candidates({name: Slot((name,), shape, "BF16") for name, shape in tensors(layers)})
        for member in members:
            candidates.add(member.name, member, ())
        gradient = {name: torch.randn(torch.Size(slot.shape).numel()) for name, slot in candidates.slots.items()}
        every = dict.fromkeys(candidates.slots, range(pool))
        files = [file for member in members for file in sorted(member.glob("*.safetensors"))]
        moved = sum(file.stat().st_size for file in files)
        reads, passes, peaks = [], [], []
        for _ in range(1 + ROUNDS):
            reads.append(seconds(lambda: read_all(files)))
            with peak_memory() as peak:
                passes.append(seconds(lambda: candidates.scores(gradient, every)))
            peaks.append(peak[0])
    reads, passes = reads[1:], passes[1:]
    return [
        {
            "pool": pool,
            "parameters": sum(len(own) for own in gradient.values()),
            "gigabytes": moved / 1e9,
            "read_seconds": statistics.median(reads),
            "seconds": statistics.median(passes),
            "of_read": statistics.median(p / r for p, r in zip(passes, reads, strict=True)),
            "memory_mib": max(peaks),
            "threads": len(os.sched_getaffinity(0)),
        }
    ]


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Within, the most MiB that were added to what was there before: the only element of a list."""
    before, peak, done = anonymous_mib(os.getpid()), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], anonymous_mib(os.getpid()) - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
