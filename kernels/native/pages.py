"""Anonymous memory in large pages, where the system has them.

New pages are dear, and tensor after tensor needs as much: what is given back is kept for the next one, or until the
system needs it.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

LARGE = 2 << 20  # bytes


class Pages:
    """Pieces of memory, each a tensor's until it and all that shares its memory are gone."""

    def __init__(self) -> None:
        self._idle: list[mmap.mmap] = []
        self._lock = threading.RLock()  # within it garbage may be collected, which gives back
        self._zeros = mmap.mmap(-1, LARGE)

    def take(self, numbers: int, dtype: torch.dtype) -> Tensor:
        """A 1-D tensor of so many numbers, of any values."""
        size = numbers * dtype.itemsize
        if size < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
            return torch.empty(numbers, dtype=dtype)
        with self._lock:
            memory = min((piece for piece in self._idle if len(piece) >= size), key=len, default=None)
            if memory is not None:
                self._idle.remove(memory)
            else:  # in their place, or idle pieces would add up
                while self._idle and size > 0:
                    size -= len(self._idle.pop(0))
        if memory is None:
            memory = _mapped(numbers * dtype.itemsize)
        bytes_ = np.frombuffer(memory, np.uint8, numbers * dtype.itemsize)
        weakref.finalize(bytes_, self._give_back, memory).atexit = False
        return torch.from_numpy(bytes_).view(dtype)

    def zeros(self, numbers: int, dtype: torch.dtype) -> Tensor:
        """So many zeros, which nobody may write to: they take no memory, and all callers share them."""
        size = numbers * dtype.itemsize
        with self._lock:
            if size > len(self._zeros):
                self._zeros = _mapped(size)
            memory = self._zeros
        return torch.from_numpy(np.frombuffer(memory, np.uint8, size)).view(dtype)

    def _give_back(self, memory: mmap.mmap) -> None:
        _advise(memory, mmap.MADV_FREE)
        with self._lock:
            self._idle.append(memory)


def _mapped(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _advise(memory, mmap.MADV_HUGEPAGE)
    return memory


def _advise(memory: mmap.mmap, advice: int) -> None:
    with suppress(OSError):
        memory.madvise(advice)


pages = Pages()
