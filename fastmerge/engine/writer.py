"""Output files, written at known offsets by a thread of its own while the next chunk is computed.

Every few seconds the thread waits until what it has written is on the disk, then tells the journal which tensors are
finished. A slot's memory lies relative to page boundaries as its bytes lie in the file.
"""

from __future__ import annotations

import mmap
import queue
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..formats.layout import FilePlan
from .journal import Journal, fsync_all
from .output_files import PAGE, OutputFiles

SYNC_SECONDS = 2.0


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
        self._files = OutputFiles(folder)
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
                self._files.open(file)
            fsync_all([folder, *(path for path in folder.rglob("*") if path.is_dir())])
        except BaseException:
            self._files.close()
            raise

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self._full.put(None)
        self._thread.join()
        self._files.close()
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
            data = memoryview(item.memory)[segment.start :][: segment.nbytes]
            self._files[segment.file].write(data, segment.offset, segment.start % PAGE)
            self._unsynced.add(segment.file)

    def _sync(self) -> None:
        """Wait for the disk, then journal the tensors that are finished."""
        lines, self._lines = (
            self._lines,
            [],
        )  # never to be journaled where waiting fails, though it might not fail twice
        while self._unsynced:
            self._files[self._unsynced.pop()].sync()
        if lines:
            self._journal.append(lines)
