"""FR-Merging's filter and merge in two sweeps over the rows, with a few columns transformed in between.

Forward: v = Σ_k w_k · τ_k of a block of rows, their spectra, and of these the plan's columns as rows of a panel.
Across: those are transformed, multiplied by what is kept of them, and transformed back.
Back: a block's spectra, zero beyond the panel's columns, and the rows they are of, to which v and base are added.

Most matrices go through in one block, and v is kept; of larger ones it is formed twice. Blocks are of the shape alone,
and each matrix goes through by itself: so its bits depend neither on the pieces that are asked for nor on what is
merged with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..reference.numeric import working_dtype
from ..reference.spectrum import Bins
from . import cufft
from .delta_sum import delta_sum
from .launch import on_device
from .panel import finish, keep, new_panel, planned, transpose

BLOCK = 1 << 27  # elements worked on together: v and its spectrum are 512 MiB each in float32


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
    bad = Filtered(base, models, weights, convention, limit).merge(0, scale, as_delta, out)
    return lambda: int(bad)


class Filtered:
    """As the reference's. Of each step it holds the last: a block's v, a matrix's panel, a block that came back."""

    def __init__(
        self,
        base: Tensor | None,
        models: Sequence[Tensor],
        weights: Sequence[float],
        convention: str,
        limit: int,
        each: bool = False,
    ) -> None:
        self.base, self.models, self.filter = base, models, (convention, limit)
        _, self.h, self.w = models[0].shape
        self.bins = Bins(self.h, self.w, convention, limit)
        self.plan = planned(self.bins)
        self.rows = min(self.h, max(1, BLOCK // self.w))  # of a block
        kept = 1.0 if self.plan.subtract or self.plan.columns else 0.0  # times zero what is not finite is still seen
        self.weights = [weight * kept for weight in weights]
        real = working_dtype([*models, *([] if base is None else [base])])
        self.v = models[0].new_empty(self.rows, self.w, dtype=real)
        self.summed = self.entered = self.returned = -1  # the first elements of those blocks, and of that matrix

    # Memory is taken once the first sum is under way.
    @functools.cached_property
    def spectrum(self) -> Tensor:
        """Of a block's rows."""
        return self.v.new_empty(self.rows, self.w // 2 + self.w % 2, dtype=self.v.dtype.to_complex())

    @functools.cached_property
    def panel(self) -> Tensor:
        """The planned columns of a matrix: [columns, h or a few more]."""
        return new_panel(self.bins, self.v)

    @functools.cached_property
    def filtered(self) -> Tensor:
        """What comes back of a block: where its spectrum was, if that is as large."""
        return torch.empty_like(self.v) if self.w % 2 else self.spectrum.view(self.v.dtype)

    def write(self, start: int, scale: float, as_delta: bool, out: Tensor) -> int:
        """As the reference's."""
        return int(self.merge(start, scale, as_delta, out))

    def merge(self, start: int, scale: float, as_delta: bool, out: Tensor) -> Tensor | int:
        """`write` without waiting for what it returns."""
        base, bad = None if as_delta else self.base, None
        with on_device(out):
            for matrix, block, a, b in self._blocks(start, start + out.numel()):
                parts = self._parts(matrix, block)
                if bad is None:  # not before the first sum is under way
                    bad = torch.zeros(1, dtype=torch.int64, device=out.device)
                v, filtered = (None if t is None else _part(t, a - block, b - block) for t in parts)
                own = None if base is None else _part(base, a, b)
                finish(own, v, filtered, scale, _part(out, a - start, b - start), bad)
        return 0 if bad is None else bad

    def each_magnitude(self) -> list[float]:
        """As the reference's."""
        assert self.base is not None
        return self.magnitudes(self.base, self.models, *self.filter)

    @staticmethod
    def magnitudes(base: Tensor, models: Sequence[Tensor], convention: str, limit: int) -> list[float]:
        """As the reference's."""
        filtered = torch.empty(base.numel(), dtype=working_dtype([base, *models]), device=base.device)
        found = []
        for model in models:
            Filtered(base, [model], [1.0], convention, limit).merge(0, 1.0, True, filtered)
            found.append(filtered.abs().sum(dtype=torch.float64))
        return [float(sum) for sum in found]

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """The blocks that have elements start … stop: first elements of its matrix and of it, and which ones it has."""
        matrix, block = self.h * self.w, self.rows * self.w
        for first in range(start - start % matrix, stop, matrix):
            for begin in range(first, first + matrix, block):
                a, b = max(start, begin), min(stop, begin + block, first + matrix)
                if a < b:
                    yield first, begin, a, b

    def _parts(self, matrix: int, block: int) -> tuple[Tensor | None, Tensor | None]:
        """What G(v) of a block's rows is the sum of: v, and what came back. Both by their first elements."""
        filtered = None
        if self.plan.columns:
            if self.returned != block:
                self._enter(matrix)
                self._return(matrix, block)
            filtered = self.filtered
        return self._sum(matrix, block) if self.plan.subtract or filtered is None else None, filtered

    def _sum(self, matrix: int, block: int) -> Tensor:
        """v of a block: [rows, w]."""
        rows = min(self.rows, self.h - (block - matrix) // self.w)
        v = _rows(self.v, rows)
        if self.summed != block:
            stop = block + rows * self.w
            base = None if self.base is None else _part(self.base, block, stop)
            delta_sum(base, [_part(model, block, stop) for model in self.models], self.weights, v)
            self.summed = block
        return v

    def _enter(self, matrix: int) -> None:
        """Transform the rows of a matrix, and filter its planned columns."""
        if self.entered == matrix:
            return
        for row in range(0, self.h, self.rows):
            v = self._sum(matrix, matrix + row * self.w)
            spectrum = _rows(self.spectrum, len(v))
            if self.w % 2:
                cufft.forward(v, spectrum)
            else:
                cufft.rows(v.view(spectrum.dtype), spectrum, cufft.FORWARD)
            transpose(spectrum, self.panel, row, self.bins)
        columns = self.panel[:, : self.h]
        cufft.rows(columns, columns, cufft.FORWARD)
        keep(self.panel, self.bins)
        cufft.rows(columns, columns, cufft.INVERSE)
        self.entered = matrix

    def _return(self, matrix: int, block: int) -> None:
        """Transform a block's rows back."""
        row = (block - matrix) // self.w
        spectrum = _rows(self.spectrum, min(self.rows, self.h - row))
        transpose(spectrum, self.panel, row, self.bins, back=True)
        if self.w % 2:
            cufft.inverse(spectrum, _rows(self.filtered, len(spectrum)))
        else:
            cufft.rows(spectrum, spectrum, cufft.INVERSE)
        self.returned = block


def _part(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Elements start … stop of a tensor: itself if these are all, which takes no time."""
    return tensor if stop - start == tensor.numel() else tensor.view(-1)[start:stop]


def _rows(tensor: Tensor, count: int) -> Tensor:
    """The first rows of a tensor: itself if it has no more."""
    return tensor if count == len(tensor) else tensor[:count]
