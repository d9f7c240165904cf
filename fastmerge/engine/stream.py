"""Tensors streamed from files, through a function, into files, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats.layout import Place
from ..formats.safetensors import DTYPES, TensorInfo
from .mapping import TORCH_DTYPES, Inputs, ReadAhead, Span
from .writer import PAGE, Segment, Slot, Writer


@dataclass(frozen=True, slots=True)
class Source:
    """A stored tensor, or one row of a stored [K, ceil(N/8)] mask tensor."""

    info: TensorInfo
    row: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        return TORCH_DTYPES.get(self.info.dtype, torch.uint8)

    def span(self, a: int, b: int) -> Span:
        """The bytes of elements a to b."""
        if self.row is None:
            size = DTYPES[self.info.dtype]
            return self.info.file, self.info.start + a * size, self.info.start + b * size
        start = self.info.start + self.row * self.info.shape[1]
        return self.info.file, start + a // 8, start + -(-b // 8)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a result goes: one or (tied tensors) several places; `mask_rows` rows of packed bits where not 0."""

    places: tuple[Place, ...]
    dtype: str
    mask_rows: int = 0

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
    """One tensor: `run` gets the sources' chunk and the targets' memory, `done` is called after the last chunk."""

    numel: int
    sources: tuple[Source, ...]
    targets: tuple[Target, ...]
    run: Callable[[list[Tensor], list[Tensor]], None]
    done: Callable[[], None] = lambda: None

    def chunks(self, chunk: int) -> Iterator[tuple[int, int]]:
        for a in range(0, self.numel, chunk):
            yield a, min(a + chunk, self.numel)


def slot_bytes(works: Sequence[Work], chunk: int) -> int:
    """Memory that a slot needs for any chunk of these works."""
    return max((sum(t.chunk_bytes(min(chunk, w.numel)) for t in w.targets) for w in works), default=0) + PAGE


def stream(
    works: Sequence[Work], inputs: Inputs, writer: Writer, chunk: int, progress: Callable[[int], None] | None = None
) -> None:
    """Run the works in order, `chunk` elements at a time. `progress` is told the bytes read."""
    pieces = [(work, a, b) for work in works for a, b in work.chunks(chunk)]
    spans = [[source.span(a, b) for source in work.sources] for work, a, b in pieces]
    finished = {id(work) for work, _, b in pieces if b == work.numel}
    with ReadAhead(inputs, spans) as ahead:
        for (work, a, b), piece in zip(pieces, spans, strict=True):
            slot = writer.slot()
            ahead.wait()
            sources = [inputs.tensor(span, source.dtype) for span, source in zip(piece, work.sources, strict=True)]
            work.run(sources, [target.take(slot, a, b, work.numel) for target in work.targets])
            ahead.done()
            writer.put(slot)
            if b == work.numel:
                work.done()
            if progress:
                progress(sum(stop - start for _, start, stop in piece))
    for work in works:
        if id(work) not in finished:  # empty tensors
            work.done()
