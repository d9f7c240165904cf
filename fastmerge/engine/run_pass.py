"""The works of one pass, carried out but for what is finished or known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

from torch import Tensor

from ..formats.layout import FilePlan
from ..formats.mapping import Inputs
from ..recipe.memory import SLOTS
from . import journal
from .pipeline import Pipeline
from .publish import Publication
from .stream import Work, slot_bytes, stream, threads_each
from .writer import Writer

Progress = Callable[[int], None]  # called with the bytes that have been read


def expect(progress: Progress | None, nbytes: int) -> None:
    """Tell a progress that has a method `expect` how many more bytes will be read."""
    told = getattr(progress, "expect", None)
    if told is not None:
        told(nbytes)


class Moved(NamedTuple):
    """Bytes that were read and written."""

    read: int
    written: int


def run_pass(
    works: Sequence[Work],
    files: Sequence[FilePlan],
    publication: Publication,
    inputs: Inputs,
    chunk: int,
    progress: Progress | None = None,
    *,
    number: int = 0,
    last: bool = True,
    lanes: int = 1,
    pipeline: Pipeline | None = None,
) -> Moved:
    """Run pass `number` of a merge, which writes `files`; what was finished before it was stopped is restored.

    On the CPU, `lanes` works at a time, unless there is a pipeline of other devices.
    """
    before = publication.finished(number, files)
    done = {i: sums for i, work in enumerate(works) if (sums := before.get(i, work.known)) is not None}
    for i, sums in done.items():
        works[i].restore(sums)
    left = {i: work for i, work in enumerate(works) if i not in done}
    if progress and done:
        progress(sum(works[i].bytes_read for i in done))
    if not left:
        return Moved(0, 0)
    numbers = {id(work): i for i, work in left.items()}
    if pipeline is not None:
        chunk = pipeline.chunk(list(left.values()), chunk)
        slots, slot, threads = 0, 0, pipeline.WRITERS  # slots are its own
    else:
        slots, slot = SLOTS, slot_bytes(list(left.values()), chunk)
        threads = 1  # writes what the CPU computes as fast
    with Writer(publication.folder, files, slots, slot, publication.journal, threads) as writer:

        def finished(work: Work, sums: list[Tensor]) -> None:
            writer.finish(journal.line(number, numbers[id(work)], sums))

        if pipeline is not None:
            pipeline.run(list(left.values()), chunk, inputs, writer, finished, progress)
        else:
            pieces = [piece for work in left.values() for piece in work.pieces(chunk)]
            # One tensor at a time keeps memory and disk busy, where no more is done with it than to stream it.
            by_torch = any(work.by_torch for work in left.values())
            lanes = lanes if by_torch or any(piece.whole for piece in pieces) else 1
            with threads_each(lanes) if by_torch else nullcontext() as begin:
                stream(pieces, inputs, writer, finished, progress, again=not last, lanes=lanes, begin=begin)
    return Moved(
        sum(work.bytes_read for work in left.values()),
        sum(file.size for file in files) - sum(works[i].bytes_written for i in done),
    )
