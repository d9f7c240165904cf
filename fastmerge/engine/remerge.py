"""Blocks of a merged folder, merged again from its inputs and compared to the byte."""

from __future__ import annotations

import os
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..formats.layout import Layout
from ..formats.mapping import Inputs
from ..methods._declaration import Statistics
from ..recipe.memory import BLOCK
from ..recipe.merge_plan import MergePlan
from .run_pass import Progress, expect
from .slots import HostSlot, Segment
from .statistics import Kept
from .stream import Piece, Work, slot_bytes, stream
from .works import Reading

SAMPLE = 4 * BLOCK  # elements


class Remerge:
    """A plan of one output, carried out against the files of `folder` instead of into them.

    Passes before the last are read whole, since the last needs their statistics; of the last, `samples` blocks, or all.
    """

    def __init__(self, plan: MergePlan, folder: Path, samples: int | None, seed: int) -> None:
        self.blocks = 0  # that were compared
        self.whole = samples is None
        self.statistics: list[Statistics] = []  # of every pass; of the last, for tensors that were merged whole
        self.problems: list[str] = []
        self.plan = plan
        self._folder = folder
        self._samples = samples
        self._random = random.Random(int(seed))

    def gather(self, progress: Progress | None) -> None:
        """Run the passes before the last, after which the plan is known whole."""
        for number in range(self.plan.pass_count - 1):
            self._run(number, progress)
        self.plan = self.plan.knowing([self.statistics])

    def compare(self, progress: Progress | None) -> None:
        """Run the last pass, and compare."""
        self._run(self.plan.pass_count - 1, progress)

    def _run(self, number: int, progress: Progress | None) -> None:
        """Run a pass. Raises MergeError where the inputs cannot be merged any more."""
        plan = self.plan
        inputs = Inputs(plan.headers)
        gathered = Statistics(len(plan.models))
        reading = Reading(plan, number, [self.statistics], [gathered], inputs, Kept())
        works = reading.works()
        samples = self._samples if reading.last else None
        self.blocks = compare(
            works,
            plan.outputs[0].all_layouts,
            self._folder,
            inputs,
            plan.chunk,
            samples,
            self._random,
            self.problems,
            progress,
            again=not reading.last,
        )
        self.statistics.append(gathered)


def compare(
    works: Sequence[Work],
    layouts: Sequence[Layout],
    folder: Path,
    inputs: Inputs,
    chunk: int,
    samples: int | None,
    choice: random.Random,
    problems: list[str],
    progress: Progress | None,
    *,
    again: bool = False,
) -> int:
    """Carry out works against the files of `folder`, `samples` blocks of them or all; how many blocks that were.

    What differs joins `problems`. Raises MergeError where the inputs cannot be read any more.
    """
    pieces = [piece for work in works for piece in work.pieces(chunk)]
    if samples is not None:
        pieces = _sampled(works, min(SAMPLE, chunk), samples, choice)
    expect(progress, sum(piece.nbytes for piece in pieces if not piece.whole))
    comparer = _Comparer(layouts, folder, slot_bytes(works, chunk))
    try:
        stream(pieces, inputs, comparer, progress=progress, again=again)
        inputs.check_unchanged()
    finally:
        comparer.close()
        problems += comparer.problems.values()
    return sum(1 for piece in pieces if not piece.whole)


def _sampled(works: Sequence[Work], size: int, samples: int, choice: random.Random) -> list[Piece]:
    """Some blocks of some works, in order, each after what it has to be prepared by."""
    pieces = [list(work.pieces(size)) for work in works]
    blocks = [(w, p) for w, own in enumerate(pieces) for p, piece in enumerate(own) if not piece.whole]
    chosen = set(choice.sample(blocks, min(samples, len(blocks))))
    found = []
    for w, own in enumerate(pieces):
        picked = [piece for p, piece in enumerate(own) if piece.whole or (w, p) in chosen]
        if any(not piece.whole for piece in picked):
            found += [replace(piece, last=piece.last and len(picked) == len(own)) for piece in picked]
    return found


class _Comparer:
    """A sink that compares what it is given with the bytes of files; `problems` are by tensor."""

    def __init__(self, layouts: Sequence[Layout], folder: Path, slot: int) -> None:
        self.problems: dict[tuple[str, str], str] = {}
        self._folder = folder
        self._slot = HostSlot(slot)
        self._files: dict[str, int] = {}
        self._starts: dict[str, list[tuple[int, str]]] = {}
        for layout in layouts:
            for name, place in layout.places.items():
                self._starts.setdefault(place.file, []).append((place.start, name))

    def slot(self) -> HostSlot:
        """Memory for the next block: each is compared before the next is asked for."""
        self._slot.clear()
        return self._slot

    def put(self, slot: HostSlot) -> None:
        """Compare."""
        for segment in slot.segments:
            data = memoryview(slot.memory)[segment.start :][: segment.nbytes]
            if segment.file not in self._files:
                self._files[segment.file] = os.open(self._folder / segment.file, os.O_RDONLY)
            stored = os.pread(self._files[segment.file], segment.nbytes, segment.offset)
            if stored != data:
                self._differs(segment, data, stored)

    def close(self) -> None:
        for fd in self._files.values():
            os.close(fd)

    def _differs(self, segment: Segment, data: memoryview, stored: bytes) -> None:
        first = segment.offset + int((np.frombuffer(data, np.uint8) != np.frombuffer(stored, np.uint8)).argmax())
        starts = self._starts[segment.file]
        start, name = starts[bisect_right(starts, (first, "\U0010ffff")) - 1]
        path = self._folder / segment.file
        text = f"{path}: tensor {name!r} is not what its inputs give (first at byte {first - start:,})"
        self.problems.setdefault((segment.file, name), text)
