"""What is computed on a device, brought to files: device → staging memory → file, by the threads that write.

The native backend does this without Python's lock; where it was not built, Python does.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from .devices import Device, Unloader
from .feed import aligned
from .slots import PAGE, Extent, Segment, cut, write_host

PART = 2 << 20  # bytes, at most, that are written while as many come in: of new files a system clears huge pages
LEAST_PART = 16 * PAGE
PARTS = 2  # of each thread's staging memory, as the native backend's Unloader has it


class DeviceSlot:
    """Memory of a device for the outputs of what is computed at a time, as much as was ever wanted."""

    def __init__(self, unloading: _Unloading) -> None:
        self._unloading = unloading
        self.bytes: Tensor | None = None
        self.clear()

    def clear(self) -> None:
        self._used = 0
        self.segments: list[Segment] = []

    def reserve(self, nbytes: int, empty: Callable[[], Tensor]) -> None:
        """Have so many bytes, or what `empty` gives in place of fewer."""
        if self.bytes is None or self.bytes.numel() < nbytes:
            self.bytes = None  # first let go of what is there
            self.bytes = empty()

    def take(self, nbytes: int, offset: int, dtype: torch.dtype) -> tuple[int, Tensor]:
        assert self.bytes is not None
        start = self._used
        self._used += aligned(nbytes)
        return start, self.bytes[start : start + nbytes].view(dtype)

    def aligns(self, segment: Segment) -> bool:
        return True  # staging memory does

    def write(self, extents: Sequence[Extent]) -> bool:
        assert self.bytes is not None
        return self._unloading.write(self.bytes, extents)


class Outlet:
    """Slots of a device, of which up to `threads` write at a time, through `staging` bytes of the host."""

    def __init__(self, device: Device, slots: int, threads: int, staging: int) -> None:
        self._count, unloading = slots, _Unloading(device, threads, staging)
        self._free: queue.SimpleQueue[DeviceSlot] = queue.SimpleQueue()
        for _ in range(slots):
            self._free.put(DeviceSlot(unloading))

    def slot(self) -> DeviceSlot:
        """One, as soon as what was in it is written."""
        slot = self._free.get()
        slot.clear()
        return slot

    def freeing(self, slot: DeviceSlot) -> Callable[[], None]:
        """What lets a slot be had again."""
        return partial(self._free.put, slot)

    def forget(self) -> None:
        """Let go of all memory of the device, once what is there is written."""
        slots = [self._free.get() for _ in range(self._count)]
        for slot in slots:
            slot.bytes = None
            self._free.put(slot)


class _Unloading:
    def __init__(self, device: Device, threads: int, staging: int) -> None:
        memory = device.staging(staging)
        if memory.data_ptr() % PAGE:  # that is not page-locked; to ask for more of what is would take twice as much
            memory = device.staging(staging + PAGE)
        self._device, self._memory = device, memory[-memory.data_ptr() % PAGE :][:staging]
        self._native: Unloader | None = device.unloader(self._memory, threads)
        self._parts: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        if self._native is None:
            size = staging // threads // PAGE * PAGE
            for i in range(threads):
                self._parts.put(self._memory[i * size :][:size])

    def write(self, memory: Tensor, extents: Sequence[Extent]) -> bool:
        """Write extents of memory of the device, as Slot has it."""
        if self._native is None:
            return all(self._write(memory, extent) for extent in extents)
        at = memory.data_ptr()
        error = self._native.write([(at + extent.start, *extent[1:]) for extent in extents])
        if error > 0:
            raise OSError(error, os.strerror(error))
        return not error

    def _write(self, memory: Tensor, extent: Extent) -> bool:
        part = self._parts.get()
        try:
            at = 0
            while at < extent.nbytes:
                stop = min(extent.nbytes, at + part.numel() - (extent.offset + at) % PAGE)
                stretch = cut(extent, at, stop)
                stage = part[stretch.offset % PAGE :][: stretch.nbytes]
                self._device.outgoing.copy(stage, memory[stretch.start :][: stretch.nbytes])
                self._device.outgoing.record().synchronize()
                if not write_host(stage, [stretch._replace(start=0)]):
                    return False
                at = stop
            return True
        finally:
            self._parts.put(part)
