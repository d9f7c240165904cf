"""Memory for what is computed of a chunk, on its way to files."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .. import dispatch

PAGE = 4096

PRIVATE: dict[str, int] = (
    {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
)  # memory that may have huge pages


@dataclass(frozen=True, slots=True)
class Segment:
    """`nbytes` from `start` of a slot, to be written at `offset` of `file`."""

    start: int
    nbytes: int
    file: str
    offset: int


class Extent(NamedTuple):
    """`nbytes` from `start` of a slot that go to `offset` of a file: through a map of it, where `map` is the address of
    that place, else those from `first` to `last` by the descriptor `direct`, past the page cache, and the others by
    `cached`."""

    start: int
    nbytes: int
    offset: int
    cached: int
    direct: int = -1
    first: int = 0
    last: int = 0
    map: int = 0


def cut(extent: Extent, a: int, b: int) -> Extent:
    """Its bytes from a to b."""
    start, _, offset, cached, direct, first, last, place = extent
    first, last = (min(max(a, end), b) - a for end in (first, last))
    return Extent(start + a, b - a, offset + a, cached, direct, first, last, place and place + a)


class Slot(Protocol):
    """Memory for the outputs of one chunk, and where they go to."""

    segments: list[Segment]

    def clear(self) -> None:
        """Let there be nothing in it."""

    def take(self, nbytes: int, offset: int, dtype: torch.dtype) -> tuple[int, Tensor]:
        """Memory for bytes that go to `offset` of a file: its start in the slot, and a tensor over it."""

    def aligns(self, segment: Segment) -> bool:
        """Whether its bytes are written from places that lie relative to page boundaries as those in the file."""

    def write(self, extents: Sequence[Extent]) -> bool:
        """Write, without Python's lock; whether pages could be had of the maps. Raises OSError."""


class HostSlot:
    """Memory of the host, page-aligned, in which bytes lie relative to page boundaries as in their file."""

    def __init__(self, nbytes: int) -> None:
        self.memory = mmap.mmap(-1, nbytes, **PRIVATE)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # without them it is only slower
                self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = torch.frombuffer(self.memory, dtype=torch.uint8)
        self.clear()

    def clear(self) -> None:
        self._used = 0
        self.segments: list[Segment] = []

    def take(self, nbytes: int, offset: int, dtype: torch.dtype) -> tuple[int, Tensor]:
        phase = offset % PAGE if offset % dtype.itemsize == 0 else 0
        start = -(-max(0, self._used - phase) // PAGE) * PAGE + phase
        self._used = start + nbytes
        return start, self.bytes[start : start + nbytes].view(dtype)

    def aligns(self, segment: Segment) -> bool:
        return segment.start % PAGE == segment.offset % PAGE

    def write(self, extents: Sequence[Extent]) -> bool:
        return write_host(self.bytes, extents)


def write_host(memory: Tensor, extents: Sequence[Extent]) -> bool:
    """Write extents of memory of the host."""
    data = memory.numpy().data
    for extent in extents:
        if extent.map:
            native = dispatch.load("native")
            source = memory.data_ptr() + extent.start
            if isinstance(native, str) or not native.write_mapped(extent.map, source, extent.nbytes):
                return False
            continue
        own, first, last = data[extent.start :][: extent.nbytes], extent.first, extent.last
        pwrite(extent.cached, own[:first], extent.offset)
        try:
            pwrite(extent.direct, own[first:last], extent.offset + first)
        except OSError as error:  # of a file system that wants other alignment
            if error.errno != errno.EINVAL:
                raise
            pwrite(extent.cached, own[first:last], extent.offset + first)
        pwrite(extent.cached, own[last:], extent.offset + last)
    return True


def pwrite(fd: int, data: memoryview, offset: int) -> None:
    """All of the bytes, however few the system takes at a time."""
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
