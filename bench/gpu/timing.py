"""Times on a GPU: medians of CUDA events, and the copy that is the ceiling of any kernel."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

DEVICE = "cuda"
ROUNDS = 20
COPIED = 1 << 30  # bytes, many times any L2 cache


def milliseconds(call: Callable[[], object], rounds: int = ROUNDS, warmup: int = 3) -> float:
    """The median of a call's times, from the first launch to the end of the last."""
    for _ in range(warmup):
        call()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for begin, end in events:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events)


class Copy:
    """A device-to-device copy, half of the bytes read and half written."""

    def __init__(self) -> None:
        self.source, self.target = (torch.ones(COPIED, dtype=torch.uint8, device="cuda") for _ in range(2))

    def gigabytes_per_second(self) -> float:
        """Measured now: the card's clocks change."""
        return 2 * COPIED / milliseconds(lambda: self.target.copy_(self.source), 10) / 1e6
