"""Threads side by side: each works on blocks of its own with one thread of torch's and one of ours.

torch's transforms give other bits for other numbers of threads, and its idle threads spin in the way of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import torch

from . import _native


class Workers:
    """As many threads as the backend has been set to; torch has one in each of them meanwhile."""

    def __init__(self) -> None:
        self.count = _native.threads()

    def __enter__(self) -> Workers:
        self.torch_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # of this thread, and of the new ones
        self.pool = ThreadPoolExecutor(self.count, initializer=_native.work_alone)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.pool.shutdown()
        torch.set_num_threads(self.torch_threads)

    def share(self, blocks: range, work: Callable[[Iterator[int]], int]) -> int:
        """Every thread calls work, which takes blocks until there are none; returns the sum of the results."""
        taken = iter(blocks)
        count = min(self.count, len(blocks))
        return work(taken) if count == 1 else sum(self.pool.map(work, [taken] * count))
