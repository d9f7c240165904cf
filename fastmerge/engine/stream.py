"""Tensors streamed from files, through a function, into files, chunk by chunk."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..formats.dtypes import TORCH_DTYPES
from ..formats.expanded import is_computed
from ..formats.layout import Place
from ..formats.mapping import LITTLE, Inputs, Little, ReadAhead, Span
from ..formats.safetensors import DTYPES, TensorInfo
from .reading import read, spans
from .slots import PAGE, HostSlot, Segment, Slot

_dividing = threading.Lock()
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """A stored tensor, or one row of a stored [K, ceil(N/8)] mask tensor."""

    info: TensorInfo
    row: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        return TORCH_DTYPES.get(self.info.dtype, torch.uint8)

    def nbytes(self, a: int, b: int) -> int:
        """What elements a to b take, `a` a multiple of 8."""
        return (b - a) * DTYPES[self.info.dtype] if self.row is None else -(-b // 8) - a // 8

    def spans(self, a: int, b: int) -> list[Span]:
        """The bytes that elements a to b are read from."""
        if self.row is None:
            return spans(self.info, a, b)
        start = self.info.start + self.row * self.info.shape[1]
        return [(self.info.file, start + a // 8, start + -(-b // 8))]

    @property
    def is_stored(self) -> bool:
        """Whether its elements lie in a file as they are, and need not be computed."""
        return self.row is not None or not is_computed(self.info)

    def copy(self, inputs: Inputs, a: int, b: int, memory: Tensor) -> None:
        """Elements a to b into memory of the host, uint8."""
        spans = self.spans(a, b)
        if self.is_stored:
            (span,) = spans
            return inputs.copy(span, memory.numpy().data)
        inputs.populate(spans)
        copy(self.read(inputs, a, b), memory)
        return inputs.release(spans)

    def read(self, inputs: Inputs, a: int, b: int) -> Tensor:
        """Elements a to b, 1-D."""
        if self.row is None:
            return read(inputs, self.info, a, b)
        (span,) = self.spans(a, b)
        return inputs.tensor(span, torch.uint8)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a result goes: one or (tied tensors) several places; `mask_rows` rows of packed bits where not 0.

    `numel`: the elements of what is written with the whole tensor, however many that has.
    """

    places: tuple[Place, ...]
    dtype: str
    mask_rows: int = 0
    numel: int = 0

    def take(self, slot: Slot, a: int, b: int, numel: int) -> Tensor:
        """Memory for elements a to b of the result, which the slot will write to all places."""
        dtype = TORCH_DTYPES.get(self.dtype, torch.uint8)
        size = DTYPES[self.dtype]
        first, stride, nbytes = (
            (a // 8, -(-numel // 8), -(-b // 8) - a // 8) if self.mask_rows else (a * size, 0, (b - a) * size)
        )
        rows = self.mask_rows or 1
        start, memory = slot.take(rows * nbytes, self.places[0].start + first, dtype)
        for place in self.places:
            slot.segments += [
                Segment(start + r * nbytes, nbytes, place.file, place.start + first + r * stride) for r in range(rows)
            ]
        return memory.view(rows, nbytes) if self.mask_rows else memory

    def chunk_bytes(self, chunk: int) -> int:
        """An upper bound of what a chunk takes in a slot."""
        return (self.mask_rows * -(-chunk // 8) if self.mask_rows else chunk * DTYPES[self.dtype]) + 2 * PAGE


@dataclass(frozen=True, slots=True)
class Work:
    """One tensor. `prepare` gets the sources whole, and the memory of `whole_targets`; `run` the index of a chunk's
    first element, the sources' chunk and the targets' memory; `done` is called after the last chunk and returns the
    tensor's sums; before it, `release` lets go of the sources. Off the CPU, or to begin again, `begin` is called first,
    with the device that these are on. In place of all this, `restore` takes sums found before; `known` are some that
    another merge has found. A chunk has `least_chunk` elements at least. `by_torch`: as Pass has it."""

    numel: int
    sources: tuple[Source, ...]
    targets: tuple[Target, ...]
    run: Callable[[int, list[Tensor], list[Tensor]], None]
    done: Callable[[], list[Tensor]] = list
    release: Callable[[], None] = lambda: None
    begin: Callable[[torch.device], None] = lambda _: None
    restore: Callable[[list[Tensor]], None] = lambda _: None
    known: list[Tensor] | None = None
    prepare: Callable[[list[Tensor], list[Tensor]], None] | None = None
    whole_targets: tuple[Target, ...] = ()
    least_chunk: int = 0
    by_torch: bool = False

    @property
    def bytes_read(self) -> int:
        return sum(stop - start for _, start, stop in _spans(self, 0, self.numel))

    @property
    def bytes_written(self) -> int:
        return sum(place.stop - place.start for t in (*self.targets, *self.whole_targets) for place in t.places)

    def chunk_bytes(self, chunk: int) -> int:
        """An upper bound of what the results of a chunk take in a slot."""
        return sum(target.chunk_bytes(min(max(chunk, self.least_chunk), self.numel)) for target in self.targets)

    def pieces(self, chunk: int) -> Iterator[Piece]:
        """The whole tensor, where it is prepared, then its chunks."""
        if self.prepare is not None:
            yield Piece(self, 0, self.numel, whole=True)
        step = max(chunk, self.least_chunk)
        for start in range(0, self.numel or 1, step):  # an empty tensor has one empty piece
            yield Piece(self, start, min(start + step, self.numel), last=start + step >= self.numel)


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements `start` to `stop` of a work: a chunk, or the `whole` of it to be prepared. The `last` makes it done."""

    work: Work
    start: int
    stop: int
    whole: bool = False
    last: bool = False

    @property
    def spans(self) -> list[Span]:
        return _spans(self.work, self.start, self.stop)

    @property
    def nbytes(self) -> int:
        """Bytes that are read for it."""
        return sum(stop - start for _, start, stop in self.spans)


def copy(source: Tensor, target: Tensor) -> None:
    """The bytes of a 1-D tensor, by one thread on the CPU: torch's would go on spinning beside ours."""
    if target.device.type == "cpu":
        np.copyto(target.view(torch.uint8).numpy(), source.view(torch.uint8).numpy())
    else:
        target.copy_(source)


class Sink(Protocol):
    """What takes the results: `slot` gives memory, `put` takes it back with its segments."""

    def slot(self) -> HostSlot: ...

    def put(self, slot: HostSlot) -> None: ...


def slot_bytes(works: Sequence[Work], chunk: int) -> int:
    """Memory that a slot needs for any chunk of these works."""
    sizes = (max(w.chunk_bytes(chunk), sum(t.chunk_bytes(t.numel) for t in w.whole_targets)) for w in works)
    return max(sizes, default=0) + PAGE


def stream(
    pieces: Sequence[Piece],
    inputs: Inputs,
    sink: Sink,
    finished: Callable[[Work, list[Tensor]], None] = lambda *_: None,
    progress: Callable[[int], None] | None = None,
    *,
    again: bool = False,
    lanes: int = 1,
    begin: Callable[[], None] | None = None,
) -> None:
    """Run the pieces, each work's in order, and of `lanes` works at a time. `finished` is told each work and its sums
    once all of it has been put into the sink, `progress` the bytes read, both by one thread at a time. `again`: they
    will be read again, so that pages stay mapped where there is room. `begin` is called by threads that begin."""
    keep, stop, telling = again and inputs.roomy, threading.Event(), threading.Lock()

    def run(lane: Sequence[Piece]) -> None:
        with _reading(lane, inputs, keep) as ahead:
            for piece in lane:
                if stop.is_set():
                    return
                if piece.whole:
                    _prepare(piece, inputs, sink, ahead)
                    continue
                _run(piece, inputs, sink, ahead)
                with telling:
                    if piece.last:
                        inputs.check_read()
                        finished(piece.work, piece.work.done())
                    if progress:
                        progress(piece.nbytes)

    def run_beside(lane: Sequence[Piece]) -> None:
        try:
            run(lane)
        except BaseException:
            stop.set()
            raise

    first, *others = _lanes(pieces, lanes)
    with ThreadPoolExecutor(max(1, len(others)), "fastmerge-lane", begin) as pool:
        beside = [pool.submit(run_beside, lane) for lane in others]
        try:
            run(first)
            for _ in map(Future.result, beside):  # a name for one would hold its error, which holds this frame
                pass
        except BaseException:
            stop.set()
            raise
        finally:
            beside.clear()


@contextmanager
def threads_each(lanes: int) -> Iterator[Callable[[], None]]:
    """Divide torch's threads among lanes: an operation ends with the last of its threads, which waits for a core.

    The thread that asks is a lane; others call first what this yields. All other threads keep what they have.
    """
    own = torch.get_num_threads()
    begin = partial(_have_threads, max(1, own // lanes))
    begin()
    try:
        yield begin
    finally:
        _have_threads(own)


def _have_threads(count: int) -> None:
    """Let this thread have so many of torch's.

    Torch gives as many to all threads that begin from now on. They get what they had back, which is asked, and said, in
    threads that begin.
    """
    with _dividing:
        before = _apart(torch.get_num_threads)
        torch.get_num_threads()  # a thread that has neither asked nor computed would take on what others get
        torch.set_num_threads(count)
        _apart(partial(torch.set_num_threads, before))


def _apart(call: Callable[[], T]) -> T:
    """What a call returns in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def _lanes(pieces: Sequence[Piece], count: int) -> list[list[Piece]]:
    """The pieces in several sequences, a work's in one of them, with about as many elements each."""
    lanes: list[list[Piece]] = [[] for _ in range(count)]
    elements = [0] * count
    for _, group in groupby(pieces, key=lambda piece: id(piece.work)):
        own = list(group)
        least = elements.index(min(elements))
        lanes[least] += own
        elements[least] += sum(piece.stop - piece.start for piece in own)
    return [lanes[0], *(lane for lane in lanes[1:] if lane)]


def _reading(pieces: Sequence[Piece], inputs: Inputs, keep: bool) -> ReadAhead | Little:
    chunks = [(piece.spans, not (piece.whole or keep)) for piece in pieces]
    much = sum(stop - start for spans, _ in chunks for _, start, stop in spans) > LITTLE
    return (ReadAhead if much else Little)(inputs, chunks)


def _prepare(piece: Piece, inputs: Inputs, sink: Sink, ahead: ReadAhead | Little) -> None:
    work = piece.work
    assert work.prepare is not None
    slot = sink.slot() if work.whole_targets else None
    ahead.wait()
    memory = [] if slot is None else [target.take(slot, 0, target.numel, target.numel) for target in work.whole_targets]
    work.prepare(_sources(piece, inputs), memory)
    ahead.done()
    if slot is not None:
        sink.put(slot)


def _run(piece: Piece, inputs: Inputs, sink: Sink, ahead: ReadAhead | Little) -> None:
    work = piece.work
    slot = sink.slot()
    ahead.wait()
    work.run(
        piece.start,
        _sources(piece, inputs),
        [target.take(slot, piece.start, piece.stop, work.numel) for target in work.targets],
    )
    ahead.done()
    sink.put(slot)


def _sources(piece: Piece, inputs: Inputs) -> list[Tensor]:
    return [source.read(inputs, piece.start, piece.stop) for source in piece.work.sources]


def _spans(work: Work, start: int, stop: int) -> list[Span]:
    """The bytes that elements of a work are read from, each once."""
    return list(dict.fromkeys(span for source in work.sources for span in source.spans(start, stop)))
