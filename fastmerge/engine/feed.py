"""What works read, brought into a device's memory ahead of its use: files → staging memory → device.

The native backend's loader brings what lies in files; what has to be computed on the host, and all where that backend
was not built, is brought by threads of Python.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from torch import Tensor

from ..formats.mapping import Inputs, Span
from ..formats.safetensors import DTYPES
from .devices import Device, Event, Loader
from .stream import Piece, Source, Work

ROOMS = 4  # loads on the device: one is computed with while the next come in
# Threads that read files. One core copies an eighth of what PCIe moves; where none is left for those that launch and
# write, all wait for each other.
READERS = min(12, max(2, (os.cpu_count() or 1) * 5 // 8))
SEGMENTS = READERS + READERS // 3 + 1  # of staging memory: some are on their way to the device
ALIGN = 256  # bytes, so that every tensor's loads and stores are whole


@dataclass(slots=True)
class Room:
    """Memory of the device for one load at a time, and the event after which it may be filled again."""

    memory: Tensor | None = None
    used: Event | None = None


@dataclass(slots=True)
class Load:
    """The sources of pieces, each piece's 1-D, on the device once `Feed.arrived` says so.

    A `whole` piece has all of a work that has to be prepared, and all its chunks.
    """

    pieces: list[Piece]
    room: Room
    sources: list[list[Tensor]] = field(default_factory=list)
    copies: list[Future[Event]] = field(default_factory=list)  # by threads of Python
    spans: list[Span] = field(default_factory=list)  # by the loader, under its number
    number: int | None = None


def loads_of(works: Sequence[Work], chunk: int) -> Iterator[list[Piece]]:
    """What of works comes in at a time: all of several, else of one all, where it is prepared, or chunk by chunk."""
    if len(works) > 1:
        yield [next(work.pieces(chunk)) for work in works]
        return
    for piece in works[0].pieces(chunk):
        yield [piece]
        if piece.whole:
            return


def load_bytes(pieces: Sequence[Piece]) -> int:
    return sum(aligned(source.nbytes(p.start, p.stop)) for p in pieces for source in p.work.sources)


def aligned(nbytes: int) -> int:
    """What these bytes take where others follow."""
    return -(-nbytes // ALIGN) * ALIGN


class Feed:
    """Loads of works, in order, from threads of its own. A context; leaving it drops what was not asked for.

    Iterating raises what a thread has met, torch.OutOfMemoryError among it.
    """

    def __init__(
        self,
        device: Device,
        next_works: Callable[[], Sequence[Work]],
        chunk: int,
        room: int,
        most: int,
        staging: int,
        inputs: Inputs,
    ):
        """`next_works`: what may come in at once, in the end nothing. room: bytes that rooms have from the first on.
        most: bytes that rooms have together, unless a load needs more: then it has them alone."""
        self._device, self._next_works, self._inputs = device, next_works, inputs
        self._chunk, self._room, self._most = chunk, room, most
        self._rooms: queue.SimpleQueue[Room | None] = queue.SimpleQueue()
        self._loads: queue.SimpleQueue[Load | BaseException | None] = queue.SimpleQueue()
        self._all_rooms = [Room() for _ in range(ROOMS)]
        for own in self._all_rooms:
            self._rooms.put(own)
        self._stopped = False
        self._staging = device.staging(staging)
        self._loader: Loader | None = device.loader(self._staging, READERS)
        self._segments: queue.SimpleQueue[tuple[Tensor, Event | None]] = queue.SimpleQueue()
        self._segment_bytes = staging // SEGMENTS
        self._readers: ThreadPoolExecutor | None = None
        self._thread = threading.Thread(target=self._run, name="fastmerge-feed", daemon=True)

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._rooms.put(None)
        self._thread.join()
        if self._readers is not None:
            self._readers.shutdown(cancel_futures=True)
        if self._loader is not None:
            self._loader.close()
        self._loads = queue.SimpleQueue()  # an error that nobody has asked for would hold what it is held by
        self._device.computing.record().synchronize()
        with suppress(queue.Empty):  # nothing may use memory that is let go
            while True:
                event = self._segments.get_nowait()[1]
                if event is not None:
                    event.synchronize()

    def __iter__(self) -> Iterator[Load]:
        while (load := self._loads.get()) is not None:
            if isinstance(load, BaseException):
                try:
                    raise load
                finally:
                    del load  # or its traceback would hold what it is held by, and all memory of this feed
            yield load

    def arrived(self, load: Load) -> list[Event]:
        """The events after which all of a load is there. Raises what a reader has met."""
        events = [copy.result() for copy in load.copies]
        if self._loader is not None and load.number is not None:
            failed, error = self._loader.wait(load.number)
            if failed >= 0:
                self._inputs.fail(load.spans[failed], os.strerror(error) if error else None)
            events.append(self._device.incoming.record())
        return events

    def done(self, load: Load, used: Event) -> None:
        """A load is not needed any more once an event is."""
        load.sources.clear()
        load.copies.clear()
        load.room.used = used
        self._rooms.put(load.room)

    def _run(self) -> None:
        try:
            while works := self._next_works():
                for pieces in loads_of(works, self._chunk):
                    room = self._rooms.get()
                    if room is None or self._stopped or not self._fit(room, load_bytes(pieces)):
                        return
                    self._loads.put(self._begun(Load(pieces, room)))
            self._loads.put(None)
        except BaseException as error:
            self._loads.put(error)

    def _fit(self, room: Room, nbytes: int) -> bool:
        """See that a room has so many bytes; False where the feed is left meanwhile."""
        if room.used is not None:
            room.used.synchronize()
        if room.memory is not None and room.memory.numel() >= nbytes:
            return True
        room.memory = None  # first let go of what is there
        nbytes = max(nbytes, self._room)
        emptied: list[Room] = []
        while nbytes + self._held() > self._most and len(emptied) < ROOMS - 1:
            other = self._rooms.get()
            if other is None:
                return False
            if other.used is not None:
                other.used.synchronize()
            other.memory = None
            emptied.append(other)
        for other in emptied:
            self._rooms.put(other)
        with self._device.incoming.current():  # who gets memory may fill it once its own stream has done with it
            room.memory = self._device.empty(nbytes)
        return True

    def _held(self) -> int:
        return sum(room.memory.numel() for room in self._all_rooms if room.memory is not None)

    def _begun(self, load: Load) -> Load:
        """Let the readers copy a load, as soon as they are through with those before."""
        memory = load.room.memory
        assert memory is not None
        at, spans = 0, []
        for piece in load.pieces:
            sources = []
            for source in piece.work.sources:
                to = memory[at : at + source.nbytes(piece.start, piece.stop)]
                sources.append(to.view(source.dtype))
                if self._loader is not None and source.is_stored:
                    (span,) = source.spans(piece.start, piece.stop)
                    file, start, stop = span
                    load.spans.append(span)
                    spans.append((self._inputs.descriptor(file), start, stop - start, to.data_ptr()))
                else:
                    load.copies += self._copies(source, piece, to)
                at += aligned(to.numel())
            load.sources.append(sources)
        if self._loader is not None and spans:
            load.number = self._loader.begin(spans)
        return load

    def _copies(self, source: Source, piece: Piece, to: Tensor) -> Iterator[Future[Event]]:
        """A source's part in a piece, brought by threads of Python."""
        if self._readers is None:
            self._readers = ThreadPoolExecutor(READERS, "fastmerge-reader")
            staging = self._staging if self._loader is None else self._device.staging(self._staging.numel())
            for i in range(SEGMENTS):
                self._segments.put((staging[i * self._segment_bytes :][: self._segment_bytes], None))
        step = self._segment_bytes // DTYPES[source.info.dtype] // 8 * 8  # elements
        for a in range(piece.start, piece.stop, step):
            b = min(a + step, piece.stop)
            part = slice(source.nbytes(piece.start, a), source.nbytes(piece.start, b))
            yield self._readers.submit(self._copy, source, a, b, to[part])

    def _copy(self, source: Source, a: int, b: int, to: Tensor) -> Event:
        segment, used = self._segments.get()
        try:
            if used is not None:
                used.synchronize()
            stage = segment[: to.numel()]
            source.copy(self._inputs, a, b, stage)
            self._device.incoming.copy(to, stage)
            used = self._device.incoming.record()
            return used
        finally:
            self._segments.put((segment, used))
