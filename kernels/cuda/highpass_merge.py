"""FR-Merging's filter and merge in two sweeps over the rows, with a few columns transformed in between.

Forward: v = Σ_k w_k · τ_k of a block of rows, their spectra, and of these the plan's columns as rows of a panel.
Across: those are transformed, multiplied by what is kept of them, and transformed back.
Back: a block's spectra, zero beyond the panel's columns, and the rows they are of, to which v and base are added.

Matrices of one shape, of whatever tensors, go through side by side, of small ones several are transformed by one plan;
large ones go alone, most in one block, and v is kept; of the largest it is formed twice. Plans are of the shape alone,
and matrices that one has more of are zeros: so a matrix's bits depend neither on the pieces that are asked for nor on
what is merged with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..reference.numeric import working_dtype
from ..reference.spectrum import Bins
from . import cufft
from .delta_sum import delta_sum_many
from .launch import Counts, counted, on_device
from .panel import finish_many, keep, new_panel, planned, transpose

BLOCK = 1 << 27  # elements worked on together: v and its spectrum are 512 MiB each in float32
TOGETHER = 1 << 25  # elements of matrices that go through side by side, at most
# Elements of the matrices of a plan, and how many these are, at most: a GPU transforms so many while the host makes the
# launches for one.
PLANNED, MATRICES = 1 << 23, 16
MOST = 65_535  # matrices that go through side by side: of a grid's second axis

Job = tuple[Tensor | None, Sequence[Tensor], Sequence[float], str, int, float, bool, Tensor]


def highpass_merge(
    base: Tensor | None,
    models: Sequence[Tensor],
    weights: Sequence[float],
    convention: str,
    limit: int,
    scale: float,
    as_delta: bool,
    out: Tensor,
) -> Callable[[], int]:
    """As the reference. Without a base τ_k is θ_k itself, and out the delta."""
    returned = highpass_merge_many([(base, models, weights, convention, limit, scale, as_delta, out)])
    return lambda: returned()[0]


def highpass_merge_many(jobs: Sequence[Job]) -> Counts:
    """highpass_merge of each job's arguments; matrices of one shape, working type and filter go through together.

    Returns a function that waits for what each returns.
    """
    groups: dict[Hashable, list[int]] = {}
    for i, (base, models, _, convention, limit, _, _, out) in enumerate(jobs):
        if out.numel():
            key = out.shape[1:], _working(base, models), convention, limit, out.device
            groups.setdefault(key, []).append(i)
    merged = []
    for group in groups.values():
        own = [jobs[i] for i in group]
        stack = Stack([job[:3] for job in own], *own[0][3:5])
        targets = [
            Target(part, out.view(-1), part.first, scale, as_delta)
            for part, (_, _, _, _, _, scale, as_delta, out) in zip(stack.parts, own, strict=True)
        ]
        merged.append((group, stack.merge(targets)))
    return counted(merged, len(jobs))


class Filtered:
    """As the reference's. Between pieces it holds what a Stack does."""

    def __init__(
        self,
        base: Tensor | None,
        models: Sequence[Tensor],
        weights: Sequence[float],
        convention: str,
        limit: int,
        each: bool = False,
    ) -> None:
        self.base, self.models, self.weights, self.filter = base, models, weights, (convention, limit)

    @functools.cached_property
    def stack(self) -> Stack:
        return Stack([(self.base, self.models, self.weights)], *self.filter)

    def write(self, start: int, scale: float, as_delta: bool, out: Tensor) -> Callable[[], int]:
        """As the reference's, but that it returns what waits for the number."""
        if out.numel() == self.models[0].numel():
            given = self.base, self.models, self.weights, *self.filter, scale, as_delta
            return highpass_merge(*given, out.view(self.models[0].shape))
        counts = self.stack.merge([Target(self.stack.parts[0], out, start, scale, as_delta)])
        return lambda: counts()[0]

    def each_magnitude(self) -> list[float]:
        """As the reference's."""
        assert self.base is not None
        return self.magnitudes(self.base, self.models, *self.filter)

    @staticmethod
    def magnitudes(base: Tensor, models: Sequence[Tensor], convention: str, limit: int) -> list[float]:
        """As the reference's."""
        at_once = max(1, TOGETHER // base.numel())
        outs = base.new_empty(min(at_once, len(models)), *base.shape, dtype=_working(base, models))
        found = []
        for first in range(0, len(models), at_once):
            own = list(zip(models[first : first + at_once], outs, strict=False))
            highpass_merge_many([(base, [model], [1.0], convention, limit, 1.0, True, out) for model, out in own])
            found += [out.abs().sum(dtype=torch.float64) for _, out in own]
        return [float(sum) for sum in found]


class Part(NamedTuple):
    """A tensor of a stack, 1-D: its elements are `first` … `stop` of all."""

    base: Tensor | None
    models: Sequence[Tensor]
    weights: Sequence[float]
    first: int
    stop: int


class Target(NamedTuple):
    """Where elements of a part go, of which the first is number `first` of all. out: 1-D."""

    part: Part
    out: Tensor
    first: int
    scale: float
    as_delta: bool

    @property
    def stop(self) -> int:
        return self.first + self.out.numel()


class Stack:
    """The matrices of tensors [B, h, w], base, models and weights of each, one after the other.

    Of each step it holds the last: a block's v, a set's panel, a block that came back.
    """

    def __init__(
        self,
        tensors: Sequence[tuple[Tensor | None, Sequence[Tensor], Sequence[float]]],
        convention: str,
        limit: int,
    ) -> None:
        _, self.h, self.w = tensors[0][1][0].shape
        self.bins = Bins(self.h, self.w, convention, limit)
        self.plan = planned(self.bins)
        size, count = self.h * self.w, sum(len(models[0]) for _, models, _ in tensors)
        self.planned = max(1, min(MATRICES, min(PLANNED, BLOCK) // size))  # matrices of a plan
        most = min(MOST // self.planned, min(TOGETHER, BLOCK) // (self.planned * size))
        plans = max(1, min(-(-count // self.planned), most))
        if self.planned * size % 2:  # the next plan's rows would not begin where a complex number may
            plans = 1
        self.together = plans * self.planned  # matrices of a set
        self.rows = min(self.together * self.h, max(1, BLOCK // self.w))  # of a block
        kept = 1.0 if self.plan.subtract or self.plan.columns else 0.0  # times zero what is not finite is still seen
        self.parts: list[Part] = []
        stop = 0
        for base, models, weights in tensors:
            first, stop = stop, stop + models[0].numel()
            flat = [model.view(-1) for model in models]
            own = None if base is None else base.view(-1)
            self.parts.append(Part(own, flat, [weight * kept for weight in weights], first, stop))
        base, models, _ = tensors[0]
        self.real, self.like = _working(base, models), models[0]
        self.summed = self.entered = self.returned = -1  # the first elements of those blocks, and of that set

    # Memory is taken when it is needed, most of it once the first sum is under way.
    @functools.cached_property
    def v(self) -> Tensor:
        """Of a block's rows."""
        return self.like.new_empty(self.rows, self.w, dtype=self.real)

    @functools.cached_property
    def spectrum(self) -> Tensor:
        """Of a block's rows."""
        return self.v.new_empty(self.rows, self.w // 2 + self.w % 2, dtype=self.v.dtype.to_complex())

    @functools.cached_property
    def panel(self) -> Tensor:
        """The planned columns of a set: [together · columns, h or a few more]."""
        return new_panel(self.bins, self.v, self.together)

    @functools.cached_property
    def filtered(self) -> Tensor:
        """What comes back of a block: where its spectrum was, if that is as large."""
        return torch.empty_like(self.v) if self.w % 2 else self.spectrum.view(self.v.dtype)

    def merge(self, targets: Sequence[Target]) -> Counts:
        """Merge what targets, which follow each other, have elements of. Returns what waits for the number of each's
        that are not finite."""
        finished = []
        with on_device(targets[0].out):
            for first, block, a, b in self._blocks(targets[0].first, targets[-1].stop):
                found = self._found(first, block)
                jobs, places = [], []
                for i, begin, end in _within(targets, a, b):
                    part, out, start, scale, as_delta = targets[i]
                    base = None if as_delta else part.base
                    base = None if base is None else _cut(base, begin - part.first, end - part.first)
                    v, filtered = (None if t is None else _cut(t, begin - block, end - block) for t in found)
                    jobs.append((base, v, filtered, scale, _cut(out, begin - start, end - start)))
                    places.append(i)
                finished.append((places, finish_many(jobs)))
        return counted(finished, len(targets))

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """The blocks that have elements start … stop: first elements of its set and of it, and which ones it has."""
        size, block = self.together * self.h * self.w, self.rows * self.w
        for first in range(start - start % size, stop, size):
            for begin in range(first, first + size, block):
                a, b = max(start, begin), min(stop, begin + block, first + size)
                if a < b:
                    yield first, begin, a, b

    def _found(self, first: int, block: int) -> tuple[Tensor | None, Tensor | None]:
        """What G(v) of a block's rows is the sum of: v, and what came back. Both by their first elements."""
        filtered = None
        if self.plan.columns:
            if self.returned != block:
                self._enter(first)
                self._return(first, block)
            filtered = self.filtered
        return self._sum(first, block) if self.plan.subtract or filtered is None else None, filtered

    def _sum(self, first: int, block: int) -> Tensor:
        """v of a block: [rows, w], those after the last matrix zeros."""
        v = _rows(self.v, self._rows_of(first, block))
        if self.summed != block:
            self.summed = -1  # until all of it is there: what fails may be asked for again
            jobs = []
            for i, begin, end in _within(self.parts, block, block + v.numel()):
                base, models, weights, start, _ = self.parts[i]
                own = [_cut(model, begin - start, end - start) for model in models]
                base = None if base is None else _cut(base, begin - start, end - start)
                jobs.append((base, own, weights, _cut(v, begin - block, end - block)))
            delta_sum_many(jobs)
            if (end := self.parts[-1].stop - block) < v.numel():
                v.view(-1)[end:].zero_()
            self.summed = block
        return v

    def _rows_of(self, first: int, block: int) -> int:
        """How many rows a block of a set has."""
        return min(self.rows, self.together * self.h - (block - first) // self.w)

    def _enter(self, first: int) -> None:
        """Transform the rows of a set, and filter its planned columns."""
        if self.entered == first:
            return
        self.entered = self.returned = -1
        for row in range(0, self.together * self.h, self.rows):
            v = self._sum(first, first + row * self.w)
            spectrum = _rows(self.spectrum, len(v))
            if self.w % 2:
                cufft.forward(v, spectrum, self.planned * self.h)
            else:
                cufft.rows(v.view(spectrum.dtype), spectrum, cufft.FORWARD, self.planned * self.h)
            transpose(spectrum, self.panel, row, self.bins)
        columns, at_once = self.panel[:, : self.h], self.planned * self.plan.columns
        cufft.rows(columns, columns, cufft.FORWARD, at_once)
        keep(self.panel, self.bins)
        cufft.rows(columns, columns, cufft.INVERSE, at_once)
        self.entered = first

    def _return(self, first: int, block: int) -> None:
        """Transform a block's rows back."""
        self.returned = -1
        spectrum = _rows(self.spectrum, self._rows_of(first, block))
        transpose(spectrum, self.panel, (block - first) // self.w, self.bins, back=True)
        if self.w % 2:
            cufft.inverse(spectrum, _rows(self.filtered, len(spectrum)), self.planned * self.h)
        else:
            cufft.rows(spectrum, spectrum, cufft.INVERSE, self.planned * self.h)
        self.returned = block


def _working(base: Tensor | None, models: Sequence[Tensor]) -> torch.dtype:
    return working_dtype([*models, *([] if base is None else [base])])


class _Piece(Protocol):
    """Elements `first` … `stop` of a stack."""

    @property
    def first(self) -> int: ...

    @property
    def stop(self) -> int: ...


def _within(pieces: Sequence[_Piece], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """The numbers of the pieces that have elements start … stop, and which ones each has."""
    for i, piece in enumerate(pieces):
        a, b = max(start, piece.first), min(stop, piece.stop)
        if a < b:
            yield i, a, b


def _cut(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Elements start … stop of a tensor: itself if these are all, which takes no time."""
    return tensor if stop - start == tensor.numel() else tensor.view(-1)[start:stop]


def _rows(tensor: Tensor, count: int) -> Tensor:
    """The first rows of a tensor: itself if it has no more."""
    return tensor if count == len(tensor) else tensor[:count]
