"""An output file, written at known offsets as is fastest on its file system.

On a disk, whole pages go past the page cache (O_DIRECT) where the file system allows it: new files written through the
cache vary tenfold in speed on virtual machines. In memory (tmpfs), one thread writes at a third of what several copy
into a map of the file, if its pages are there already: a thread asks for them ahead, in order.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from ..formats.layout import FilePlan

PAGE = 4096
DIRECT_MIN = 16 * PAGE  # bytes; below, the page cache serves better
TMPFS = 0x01021994  # statfs(2) on Linux
COPIERS = min(12, (os.cpu_count() or 1) * 3 // 4)  # threads that copy into a file in memory
FEW = 3  # of which one that writes is as fast
PART = 4 << 20  # bytes that one of them copies at a time
STEP = 64 << 20  # bytes of memory that are asked for at a time

fdatasync = getattr(os, "fdatasync", os.fsync)


class OutputFile(Protocol):
    """A file that is there, with its header, and has its full size."""

    def write(self, data: memoryview, offset: int, phase: int) -> None:
        """Write all of the data; `phase`: how far behind the start of a page it lies in memory. Raises OSError."""

    def sync(self) -> None:
        """Wait until what was written is on the disk. Raises OSError."""

    def close(self) -> None: ...


class OutputFiles:
    """Opens the files of a folder, and closes them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._copiers: ThreadPoolExecutor | None = None
        if COPIERS > FEW and in_memory(folder):
            self._copiers = ThreadPoolExecutor(COPIERS, "fastmerge-copier")
            self._asking = ThreadPoolExecutor(1, "fastmerge-memory")
        self._files: dict[str, OutputFile] = {}

    def open(self, file: FilePlan) -> None:
        """Create the file, or open that of a merge that was stopped. Raises OSError."""
        path = self._folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._copiers is None:
            self._files[file.name] = _OnDisk(path, file)
        else:
            self._files[file.name] = _InMemory(path, file, self._copiers, self._asking)

    def __getitem__(self, name: str) -> OutputFile:
        return self._files[name]

    def close(self) -> None:
        if self._copiers is not None:
            self._copiers.shutdown()
            self._asking.shutdown(cancel_futures=True)
        while self._files:
            self._files.popitem()[1].close()


class _OnDisk:
    def __init__(self, path: Path, file: FilePlan) -> None:
        self._cached, self._direct = os.open(path, os.O_RDWR | os.O_CREAT, 0o644), -1
        try:
            _pwrite(self._cached, memoryview(file.header), 0)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._cached, 0, file.size)
            else:
                os.ftruncate(self._cached, file.size)
            # Where the system or file system has no such flag, everything goes through the cache.
            with suppress(AttributeError, OSError):
                self._direct = os.open(path, os.O_WRONLY | os.O_DIRECT)
        except BaseException:
            self.close()
            raise

    def write(self, data: memoryview, offset: int, phase: int) -> None:
        """Whole pages directly, what is left at both ends through the cache."""
        head = -offset % PAGE
        middle = (len(data) - head) // PAGE * PAGE
        if self._direct < 0 or middle < DIRECT_MIN or phase != offset % PAGE:
            return _pwrite(self._cached, data, offset)
        _pwrite(self._cached, data[:head], offset)
        _pwrite(self._direct, data[head : head + middle], offset + head)
        return _pwrite(self._cached, data[head + middle :], offset + head + middle)

    def sync(self) -> None:
        fdatasync(self._cached)

    def close(self) -> None:
        for fd in (self._cached, self._direct):
            if fd >= 0:
                os.close(fd)


class _InMemory:
    def __init__(self, path: Path, file: FilePlan, copiers: ThreadPoolExecutor, asking: ThreadPoolExecutor) -> None:
        self._copiers = copiers
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _pwrite(self._fd, memoryview(file.header), 0)
            os.ftruncate(self._fd, file.size)
            self._map = mmap.mmap(self._fd, file.size)
        except BaseException:
            os.close(self._fd)
            raise
        steps = range(0, file.size, STEP)
        self._there = [asking.submit(os.posix_fallocate, self._fd, at, min(STEP, file.size - at)) for at in steps]

    def write(self, data: memoryview, offset: int, phase: int) -> None:
        for step in self._there[offset // STEP : -(-(offset + len(data)) // STEP)]:
            step.result()

        def copy(start: int) -> None:
            source = np.frombuffer(data[start : start + PART], np.uint8)
            np.copyto(np.frombuffer(self._map, np.uint8, len(source), offset + start), source)

        for done in [self._copiers.submit(copy, start) for start in range(0, len(data), PART)]:
            done.result()

    def sync(self) -> None:
        """There is no disk."""

    def close(self) -> None:
        self._map.close()
        os.close(self._fd)


def in_memory(folder: Path) -> bool:
    """Whether what is written to a folder stays in memory."""
    if sys.platform != "linux":
        return False
    status = (ctypes.c_long * 32)()
    return ctypes.CDLL(None).statfs(os.fsencode(folder), status) == 0 and status[0] == TMPFS


def _pwrite(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
