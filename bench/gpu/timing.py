"""Times on a GPU: medians of CUDA events, and the copy that is the ceiling of any kernel."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import triton

DEVICE = "cuda"
ROUNDS, LONG = 20, 120.0  # and the milliseconds that are enough for fewer
COPIED = 1 << 30  # bytes, many times any L2 cache


def milliseconds(call: Callable[[], object], rounds: int = ROUNDS, warmup: int = 3) -> float:
    """The median of a call's times, from the first launch to the end of the last."""

    def times(count: int) -> list[float]:
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
        for begin, end in events:
            begin.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in events]

    last = times(warmup)[-1]
    return statistics.median(times(max(3, min(rounds, int(LONG / max(last, 1e-3))))))


class Copy:
    """A device-to-device copy, half of the bytes read and half written."""

    def __init__(self) -> None:
        self.source, self.target = (torch.ones(COPIED, dtype=torch.uint8, device="cuda") for _ in range(2))

    def gigabytes_per_second(self) -> float:
        """Measured now: the card's clocks change."""
        return 2 * COPIED / milliseconds(lambda: self.target.copy_(self.source), 10) / 1e6


def machine() -> dict[str, str]:
    """What the times are of."""
    properties = torch.cuda.get_device_properties(0)
    file = Path("/proc/driver/nvidia/version")
    version = re.search(r"\d+\.\d+[.\d]*", file.read_text()) if file.exists() else None
    return {
        "device": f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory >> 30} GiB",
        "driver": version[0] if version else "unknown",
        "cuda": str(torch.version.cuda),
        "triton": triton.__version__,
        "conformance": os.environ.get("CONFORMANCE", "not run"),
    }
