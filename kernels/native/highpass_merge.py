"""FR-Merging's filter and merge in two sweeps over the rows of a matrix, with a few columns transformed in between.

Forward: v = Σ_k w_k · τ_k of a block of rows, transformed along the rows, of which the plan's columns are kept.
Across: those columns are transformed, filtered, and transformed back.
Back: the inverse along a block's rows, and one fused sweep that forms v again, adds what came back, and base.

Neither v nor a full spectrum is ever stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import DTYPES, _base, _models, _native
from .spectrum import Bins, plan
from .transform import Transform, roots, transform

INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
LANES = {torch.float32: 8, torch.float64: 4}  # columns of the panel that lie side by side
STREAMING = 1 << 20  # bytes of output from which on it is written past the cache


def highpass_merge(
    base: Tensor | None,
    models: Sequence[Tensor],
    weights: Sequence[float],
    convention: str,
    limit: int,
    scale: float,
    as_delta: bool,
    out: Tensor,
) -> int:
    """As the reference. Without a base τ_k is θ_k itself, and out the delta."""
    return Filtered(base, models, weights, convention, limit).write(0, scale, as_delta, out.view(-1))


class Filtered:
    """As the reference's: the back sweep goes over what is asked for, the others over its matrix when it is begun."""

    def __init__(
        self, base: Tensor | None, models: Sequence[Tensor], weights: Sequence[float], convention: str, limit: int
    ) -> None:
        self.base, self.models, self.weights = base, models, list(weights)
        self.matrices, self.h, self.w = models[0].shape
        wide = any(t.dtype == torch.float64 for t in (*models, *([] if base is None else [base])))
        bins = Bins(self.h, self.w, convention, limit)
        self.plan = plan(bins)
        self._hold(bins, torch.float64 if wide else torch.float32)
        self.entered = -1  # the matrix that the panel is of

    def _hold(self, bins: Bins, real: torch.dtype) -> None:
        """The panel and the tables, and the native filter that works on them."""
        first, columns, lanes = self.plan.first, self.plan.columns, LANES[real]
        padded = -(-columns // lanes) * lanes
        self.panel = torch.empty(padded * self.h, 2, dtype=real)
        self.reaches = torch.full((2, padded), -1, dtype=INTEGERS[real])
        found = [[bins.reach(sign * x) for x in range(first, first + columns)] for sign in (1, -1)]
        self.reaches[:, :columns] = torch.tensor(found, dtype=INTEGERS[real])
        self.units = roots(torch.arange(first, first + columns), self.w, real)
        self.transforms = [transform(n, real) for n in (self.w if self.w % 2 else self.w // 2, self.h)]
        self.filter = _native.Filter(
            self.h,
            self.w,
            real == torch.float64,
            first,
            columns,
            self.plan.subtract,
            bins.middle,
            *(row.data_ptr() for row in self.reaches),
            self.units.data_ptr(),
            *map(_described, self.transforms),
            self.panel.data_ptr(),
        )

    def write(self, start: int, scale: float, as_delta: bool, out: Tensor) -> int:
        """As the reference's."""
        size, stop, nonfinite = self.h * self.w, start + out.numel(), 0
        streaming = out.numel() * out.element_size() >= STREAMING
        for i in range(start // size, -(-stop // size)):
            begin, end = max(start, i * size), min(stop, (i + 1) * size)
            merged = out[begin - start : end - start]
            nonfinite += self.filter.back(
                *self._entered(i),
                scale,
                as_delta,
                begin - i * size,
                end - i * size,
                merged.data_ptr(),
                DTYPES[merged.dtype],
                streaming,
            )
        return nonfinite

    def magnitude(self) -> float:
        """As the reference's."""
        return sum(self.filter.magnitude(*self._entered(i)) for i in range(self.matrices))

    def _entered(self, i: int) -> tuple[int, int, list[int], list[int], list[float]]:
        """What the back sweep of matrix i takes, once the panel is of it."""
        base, weights = None if self.base is None else self.base[i], self.weights
        models = [model[i] for model in self.models]
        if self.plan.columns and i != self.entered:
            self.filter.forward(*_base(base), *_models(models), weights)
            self.entered = i
        if not self.plan.subtract:  # all that is kept comes back; or nothing, and what is not finite must still be seen
            models, weights = ([], []) if self.plan.columns else (models, [0.0] * len(models))
        return *_base(base), *_models(models), weights


def _described(
    own: Transform,
) -> tuple[int, tuple[int, ...], int, tuple[int, tuple[int, ...], int] | None]:
    return *own.described, None if own.inner is None else own.inner.described
