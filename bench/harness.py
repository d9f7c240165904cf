"""What all benchmarks share: the ceiling, measured in the same run, and results that say where they come from."""

from __future__ import annotations

import ctypes
import json
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import fastmerge
from fastmerge import dispatch

RESULTS = Path(__file__).parent / "results"
memcpy = ctypes.CDLL(None).memcpy
memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


class Copy:
    """The ceiling of any kernel: the C library's copy, half of the bytes read and half written.

    Its buffers are large, since the library writes past the cache, which is faster, only from a certain size on.
    """

    moved = 1 << 30

    def __init__(self) -> None:
        self.source = torch.ones(self.moved // 2, dtype=torch.uint8)
        self.target = torch.zeros(self.moved // 2, dtype=torch.uint8)

    def seconds(self, moved: int) -> float:
        """What moving that many bytes takes, by a copy timed now."""
        taken = seconds(lambda: memcpy(self.target.data_ptr(), self.source.data_ptr(), self.source.numel()))
        return taken * moved / self.moved


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=RESULTS.parent
    )
    return done.stdout.strip() or "unknown"


def save(kind: str, rows: list[dict[str, Any]]) -> Path:
    """Write a run's rows to a file of its own in results/."""
    native = dispatch.load("native")
    now = datetime.now(timezone.utc)
    content = {
        "kind": kind,
        "date": now.isoformat(timespec="seconds"),
        "fastmerge": fastmerge.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": processor(),
        "isa": "no native backend" if isinstance(native, str) else native.isa(),
        "rows": rows,
    }
    file = RESULTS / f"{kind}-{now:%Y%m%d-%H%M%S}.json"
    file.write_text(json.dumps(content, indent=1) + "\n")
    return file
