"""Output files, written at known offsets by threads of their own, a file by one at a time, while others compute.

A system writes to a file by one core at a time. Where files are memory (tmpfs), threads that find every file busy write
what waits for one of them through a map of it, as many side by side as there are. Nothing is taken ahead there: the
system would clear the pages then, and again when they are written.

Every few seconds a thread waits until what was written is on the disk, then tells the journal which tensors are
finished.

Whole pages go past the page cache (O_DIRECT) where the file system allows it: new files written through the cache vary
tenfold in speed on virtual machines.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ..formats.layout import FilePlan
from .journal import Journal, fsync_all
from .memory_file import MemoryFile, is_memory
from .slots import PAGE, Extent, HostSlot, Segment, Slot, pwrite

DIRECT_MIN = 16 * PAGE  # bytes; below, the page cache serves better
PIECE = 16 << 20  # bytes that a thread writes at a time, about
HUGE = 2 << 20  # bytes of a huge page, which files of memory may have: a system clears what of a new one is not written
SYNC_SECONDS = 2.0

fdatasync = getattr(os, "fdatasync", os.fsync)


class _Part(NamedTuple):
    """What of a slot, the `number`th that was put, goes to a file, or a piece of it."""

    number: int
    slot: Slot
    then: Callable[[], None]  # when all of the slot is written
    file: str
    segments: list[Segment]


class Writer:
    """Creates the files of a folder, or opens those of a merge that was stopped, and fills them.

    A context: leaving it waits for the last byte to be on the disk. Raises OSError where that fails.
    """

    def __init__(
        self, folder: Path, files: Iterable[FilePlan], slots: int, slot_bytes: int, journal: Journal, threads: int = 1
    ) -> None:
        self._journal = journal
        self._cached: dict[str, int] = {}
        self._direct: dict[str, int] = {}
        self._memory: dict[str, MemoryFile] = {}
        self._free: queue.SimpleQueue[HostSlot] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._threads = [
            threading.Thread(target=self._run, name=f"fastmerge-writer-{i}", daemon=True) for i in range(threads)
        ]
        self._changed = threading.Condition()  # of what follows
        self._parts: list[_Part] = []  # to be written, the oldest first
        self._busy: set[str] = set()  # files that a thread is writing to, not through a map
        self._left: dict[int, int] = {}  # how many parts of a slot are not written, by the slot's number
        self._put = 0  # slots, ever
        self._lines: deque[tuple[int, bytes]] = deque()  # with how many slots were put before
        self._ended = False
        self._unsynced: set[str] = set()
        self._syncing = threading.Lock()
        self._synced = time.monotonic()
        self._lost = False  # whether waiting for the disk has failed, after which nobody knows what is there
        for _ in range(slots):
            self._free.put(HostSlot(slot_bytes))
        try:
            in_memory = is_memory(folder)
            self._maps = in_memory and threads > 1  # whether busy files can be written to through a map
            for file in files:
                self._open(folder / file.name, file, in_memory)
            fsync_all([folder, *(path for path in folder.rglob("*") if path.is_dir())])
        except BaseException:
            self._close()
            raise

    def _open(self, path: Path, file: FilePlan, in_memory: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._cached[file.name] = fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        pwrite(fd, memoryview(file.header), 0)
        if hasattr(os, "posix_fallocate") and not in_memory:
            os.posix_fallocate(fd, 0, file.size)
        else:
            os.ftruncate(fd, file.size)
        if self._maps:
            try:
                self._memory[file.name] = MemoryFile(fd, file.size)
            except OSError:  # as where address space is limited: without maps it is only slower
                self._maps = False
        # Where the system or file system has no such flag, everything goes through the cache, as it does in memory.
        with suppress(AttributeError, OSError):
            if not in_memory:
                self._direct[file.name] = os.open(path, os.O_WRONLY | os.O_DIRECT)

    def __enter__(self) -> Writer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        try:
            self._sync()
        except OSError as error:
            self._error = self._error or error
        self._close()
        try:
            if failure is None:
                self.check()
        finally:
            self._error = None  # which holds the frames that hold this writer

    def slot(self) -> HostSlot:
        """Memory for the next chunk, as soon as there is some."""
        slot = self._free.get()
        self.check()
        slot.clear()
        return slot

    def put(self, slot: HostSlot) -> None:
        """Write the slot's segments, then let it be used again."""
        self.write(slot, partial(self._free.put, slot))

    def write(self, slot: Slot, then: Callable[[], None]) -> None:
        """Write the segments of a slot that is somebody else's, then call what lets it be used again."""
        files: dict[str, list[Segment]] = {}
        for segment in slot.segments:
            files.setdefault(segment.file, []).append(segment)
        if not files:
            return then()
        pieces = [(file, piece) for file, segments in files.items() for piece in _pieces(segments)]
        with self._changed:
            self._left[self._put] = len(pieces)
            self._parts += [_Part(self._put, slot, then, file, piece) for file, piece in pieces]
            self._put += 1
            self._changed.notify(len(pieces))
        return None

    def check(self) -> None:
        """Raise what a thread has met."""
        if self._error is not None:
            raise self._error

    def finish(self, line: bytes) -> None:
        """A line for the journal, once what was put before is on the disk."""
        with self._changed:
            self._lines.append((self._put, line))
            self._changed.notify()

    def _close(self) -> None:
        for memory in self._memory.values():
            memory.close()
        for fd in (*self._cached.values(), *self._direct.values()):
            os.close(fd)
        self._cached, self._direct, self._memory = {}, {}, {}

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            part, mapped = taken
            try:
                if self._error is None:
                    self._write(part, mapped)
            except Exception as error:  # raised where the next slot is asked for
                traceback.clear_frames(error.__traceback__)  # which hold the slot, and all that know of it
                self._error = error
            self._done(part, mapped)
            del part, taken  # or they would hold the slot until there is more to write

    def _take(self) -> tuple[_Part, bool] | None:
        """The oldest part of a file that no other thread is writing to, once there is one, or the oldest of all, to be
        written through a map; None in the end."""
        while True:
            with self._changed:
                while not self._is_due():
                    for i, part in enumerate(self._parts):
                        if part.file not in self._busy:
                            self._busy.add(part.file)
                            return self._parts.pop(i), False
                    if self._parts and self._maps:
                        return self._parts.pop(0), True
                    if self._ended and not self._parts:
                        self._changed.notify_all()
                        return None
                    self._changed.wait()
            try:
                self._sync()
            except Exception as error:
                self._error = error

    def _done(self, part: _Part, mapped: bool) -> None:
        with self._changed:
            if not mapped:
                self._busy.remove(part.file)
            self._unsynced.add(part.file)
            self._left[part.number] -= 1
            if not self._left[part.number]:
                part.then()
                if self._error is None:  # else what follows is never to be journaled
                    del self._left[part.number]
            self._changed.notify()  # who waits for the file

    def _written(self) -> int:
        """How many slots were put before the first that is not written."""
        return min(self._left, default=self._put)

    def _is_due(self) -> bool:
        there = self._lines and self._lines[0][0] <= self._written()
        return bool(there) and time.monotonic() - self._synced >= SYNC_SECONDS

    def _sync(self) -> None:
        """Wait for the disk, then journal the tensors that are finished."""
        with self._syncing:
            with self._changed:
                self._synced = time.monotonic()
                lines = []
                while self._lines and self._lines[0][0] <= self._written():  # never again, where waiting fails
                    lines.append(self._lines.popleft()[1])
                files, self._unsynced = self._unsynced, set()
            if self._lost:
                return
            try:
                for file in files:
                    fdatasync(self._cached[file])
            except OSError:
                self._lost = True
                raise
            if lines:
                self._journal.append(lines)

    def _write(self, part: _Part, mapped: bool) -> None:
        if mapped:
            to = self._memory[part.file].address
            if part.slot.write([Extent(s.start, s.nbytes, s.offset, -1, map=to + s.offset) for s in part.segments]):
                return
            self._maps = False
        part.slot.write([self._extent(part.slot, segment) for segment in part.segments])

    def _extent(self, slot: Slot, segment: Segment) -> Extent:
        """Whole pages directly, what is left at both ends through the cache."""
        cached, direct = self._cached[segment.file], self._direct.get(segment.file)
        first = -segment.offset % PAGE
        middle = (segment.nbytes - first) // PAGE * PAGE
        if direct is None or middle < DIRECT_MIN or not slot.aligns(segment):
            return Extent(segment.start, segment.nbytes, segment.offset, cached)
        return Extent(segment.start, segment.nbytes, segment.offset, cached, direct, first, first + middle)


def _pieces(segments: Iterable[Segment]) -> list[list[Segment]]:
    """A file's segments in pieces of about as many bytes as a thread writes at a time, cut between huge pages."""
    pieces: list[list[Segment]] = [[]]
    room, step = PIECE, min(PIECE, HUGE)
    for segment in segments:
        start, end = segment.offset, segment.offset + segment.nbytes
        while start < end:
            stop = end if end - start <= room else (start + room) // step * step
            if stop <= start:
                pieces.append([])
                room = PIECE
                continue
            pieces[-1].append(Segment(segment.start + start - segment.offset, stop - start, segment.file, start))
            room -= stop - start
            start = stop
    return pieces
