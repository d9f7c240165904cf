"""Output files, written at known offsets by a thread of its own while the next chunk is computed.

Every few seconds the thread waits until what it has written is on the disk, then tells the journal which tensors are
finished.

Whole pages go past the page cache (O_DIRECT) where the file system allows it: new files written through the cache vary
tenfold in speed on virtual machines. A slot's memory lies relative to page boundaries as its bytes lie in the file.
"""

from __future__ import annotations

import mmap
import os
import queue
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..formats.layout import FilePlan
from .journal import Journal, fsync_all

PAGE = 4096
DIRECT_MIN = 16 * PAGE  # bytes; below, the page cache serves better
SYNC_SECONDS = 2.0

fdatasync = getattr(os, "fdatasync", os.fsync)


@dataclass(frozen=True, slots=True)
class Segment:
    """`nbytes` from `start` of a slot, to be written at `offset` of `file`."""

    start: int
    nbytes: int
    file: str
    offset: int


class Slot:
    """Page-aligned memory for the outputs of one chunk."""

    def __init__(self, nbytes: int) -> None:
        self.memory = mmap.mmap(-1, nbytes)
        self.bytes = torch.frombuffer(self.memory, dtype=torch.uint8)
        self._used = 0
        self.segments: list[Segment] = []

    def clear(self) -> None:
        self._used = 0
        self.segments = []

    def take(self, nbytes: int, offset: int, dtype: torch.dtype) -> tuple[int, Tensor]:
        """Memory for bytes that go to `offset` of a file: its start in the slot, and a tensor over it."""
        phase = offset % PAGE if offset % dtype.itemsize == 0 else 0
        start = -(-max(0, self._used - phase) // PAGE) * PAGE + phase
        self._used = start + nbytes
        return start, self.bytes[start : start + nbytes].view(dtype)


class Writer:
    """Creates the files of a folder, or opens those of a merge that was stopped, and fills them.

    A context: leaving it waits for the last byte to be on the disk. Raises OSError where that fails.
    """

    def __init__(self, folder: Path, files: Iterable[FilePlan], slots: int, slot_bytes: int, journal: Journal) -> None:
        self._journal = journal
        self._lines: list[bytes] = []
        self._cached: dict[str, int] = {}
        self._direct: dict[str, int] = {}
        self._unsynced: set[str] = set()
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[Slot | bytes | None] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="fastmerge-writer", daemon=True)
        self.slots = [Slot(slot_bytes) for _ in range(slots)]
        for slot in self.slots:
            self._free.put(slot)
        try:
            for file in files:
                self._open(folder / file.name, file)
            fsync_all([folder, *(path for path in folder.rglob("*") if path.is_dir())])
        except BaseException:
            self._close()
            raise

    def _open(self, path: Path, file: FilePlan) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._cached[file.name] = fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        _pwrite(fd, memoryview(file.header), 0)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, file.size)
        else:
            os.ftruncate(fd, file.size)
        # Where the system or file system has no such flag, everything goes through the cache.
        with suppress(AttributeError, OSError):
            self._direct[file.name] = os.open(path, os.O_WRONLY | os.O_DIRECT)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self._full.put(None)
        self._thread.join()
        self._close()
        if failure is None:
            self._raise()

    def slot(self) -> Slot:
        """Memory for the next chunk, as soon as there is some."""
        slot = self._free.get()
        self._raise()
        slot.clear()
        return slot

    def put(self, slot: Slot) -> None:
        """Write the slot's segments, then let it be used again."""
        self._full.put(slot)

    def finish(self, line: bytes) -> None:
        """A line for the journal, once what was put before is on the disk."""
        self._full.put(line)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _close(self) -> None:
        for fd in (*self._cached.values(), *self._direct.values()):
            os.close(fd)
        self._cached, self._direct = {}, {}

    def _run(self) -> None:
        synced = time.monotonic()
        while (item := self._full.get()) is not None:
            try:
                if self._error is None:
                    self._take(item)
                if self._lines and time.monotonic() - synced >= SYNC_SECONDS:
                    self._sync()
                    synced = time.monotonic()
            except Exception as error:  # raised where the next slot is asked for
                self._error = error
            if isinstance(item, Slot):
                self._free.put(item)
        try:
            self._sync()
        except OSError as error:
            self._error = self._error or error

    def _take(self, item: Slot | bytes) -> None:
        if isinstance(item, bytes):
            self._lines.append(item)
            return
        for segment in item.segments:
            self._write(memoryview(item.memory)[segment.start :][: segment.nbytes], segment)
            self._unsynced.add(segment.file)

    def _sync(self) -> None:
        """Wait for the disk, then journal the tensors that are finished."""
        lines, self._lines = (
            self._lines,
            [],
        )  # never to be journaled where waiting fails, though it might not fail twice
        while self._unsynced:
            fdatasync(self._cached[self._unsynced.pop()])
        if lines:
            self._journal.append(lines)

    def _write(self, data: memoryview, segment: Segment) -> None:
        """Whole pages directly, what is left at both ends through the cache."""
        cached, direct = self._cached[segment.file], self._direct.get(segment.file)
        head = -segment.offset % PAGE
        middle = (segment.nbytes - head) // PAGE * PAGE
        if direct is None or middle < DIRECT_MIN or segment.start % PAGE != segment.offset % PAGE:
            return _pwrite(cached, data, segment.offset)
        _pwrite(cached, data[:head], segment.offset)
        _pwrite(direct, data[head : head + middle], segment.offset + head)
        return _pwrite(cached, data[head + middle :], segment.offset + head + middle)


def _pwrite(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
