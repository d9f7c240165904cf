"""FR-Merging's filter and merge in two sweeps over the rows of a matrix, with a few columns transformed in between.

Forward: v = Σ_k w_k · τ_k of a block of rows, transformed along the rows, of which the plan's columns are kept.
Across: those columns are transformed, filtered, and transformed back.
Back: the inverse along a block's rows, and one fused sweep that forms v again, adds what came back, and base.

Neither v nor a full spectrum is ever stored.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference.spectrum import Bins, plan
from . import DTYPES, _base, _models, _native
from .pages import pages
from .transform import Transform, roots, transform

INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
LANES = {torch.float32: 8, torch.float64: 4}  # columns of the panel that lie side by side
Matrix = tuple[int, int, list[int], list[int]]  # addresses and dtypes of base and models
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
    """As the reference's: the back sweep goes over what is asked for, the others over its matrix when it is begun.

    Where each model is filtered on its own, the weighted sum is that of what comes back of each.
    """

    def __init__(
        self,
        base: Tensor | None,
        models: Sequence[Tensor],
        weights: Sequence[float],
        convention: str,
        limit: int,
        each: bool = False,
    ) -> None:
        self.base, self.models, self.weights = base, models, list(weights)
        matrices, h, w = models[0].shape
        bins, real = Bins(h, w, convention, limit), _real(base, models)
        self.held = [_Held(bins, real) for _ in (models if each else models[:1])]
        self.filters = [own.filter for own in self.held]
        self.found = torch.zeros(matrices, -(-h // LANES[real]), len(models), dtype=torch.float64) if each else None
        self.entered = -1  # the matrix that the panels are of

    def write(self, start: int, scale: float, as_delta: bool, out: Tensor) -> int:
        """As the reference's."""
        size, stop, nonfinite = self.models[0][0].numel(), start + out.numel(), 0
        streaming = out.numel() * out.element_size() >= STREAMING
        for i in range(start // size, -(-stop // size)):
            begin, end = max(start, i * size), min(stop, (i + 1) * size)
            merged, matrix = out[begin - start : end - start], _matrix(self.base, self.models, i)
            if i != self.entered:
                self._enter(matrix)
                self.entered = i
            piece = begin - i * size, end - i * size
            given = (*matrix, self.weights, scale, as_delta, *piece, merged.data_ptr(), DTYPES[merged.dtype], streaming)
            if self.found is None:
                nonfinite += self.filters[0].back(*given)
            else:
                nonfinite += _native.Filter.back_each(self.filters, *given, self.found[i].data_ptr())
        return nonfinite

    def _enter(self, matrix: Matrix) -> None:
        if self.found is None:
            self.filters[0].forward(*matrix, self.weights)
        else:
            _native.Filter.forward_each(self.filters, *matrix)

    def each_magnitude(self) -> list[float]:
        """As the reference's."""
        assert self.found is not None
        return [math.fsum(own) for own in self.found.view(-1, len(self.models)).T.tolist()]

    @staticmethod
    def deltas(base: Tensor, models: Sequence[Tensor], convention: str, limit: int, outs: Sequence[Tensor]) -> None:
        """Per model G(τ_k), 1-D, of the working type; models take blocks of base by turns, while they are cached."""
        _, h, w = base.shape
        real = outs[0].dtype
        bins, streaming = Bins(h, w, convention, limit), base[0].numel() * real.itemsize >= STREAMING
        held = [_Held(bins, real) for _ in models]
        filters = [own.filter for own in held]
        for i in range(len(base)):
            matrix, own = _matrix(base, models, i), [out.view(base.shape)[i].data_ptr() for out in outs]
            _native.Filter.forward_each(filters, *matrix)
            _native.Filter.back_apart(filters, *matrix, own, streaming)

    @staticmethod
    def magnitudes(base: Tensor, models: Sequence[Tensor], convention: str, limit: int) -> list[float]:
        """As the reference's."""
        _, h, w = base.shape
        bins = Bins(h, w, convention, limit)
        held = [_Held(bins, _real(base, models)) for _ in models]
        filters, found = [own.filter for own in held], [0.0] * len(models)
        for i in range(len(base)):
            more = _native.Filter.magnitudes(filters, *_matrix(base, models, i))
            found = [own + other for own, other in zip(found, more, strict=True)]
        return found


class _Held:
    """A panel, and the native filter that works on it and on tables."""

    def __init__(self, bins: Bins, real: torch.dtype) -> None:
        planned, lanes = plan(bins), LANES[real]
        self.panel = pages.take(2 * -(-planned.columns // lanes) * lanes * bins.h, real)
        self.tables = _columns(bins, planned.first, planned.columns, real)
        lengths = bins.w if bins.w % 2 else bins.w // 2, bins.h
        self.transforms = [[transform(n, real, back) for back in (False, True)] for n in lengths]
        along, across = ((_described(there), _described(back)) for there, back in self.transforms)
        reaches, mirrored, units = self.tables
        self.filter = _native.Filter(
            bins.h,
            bins.w,
            real == torch.float64,
            planned.first,
            planned.columns,
            planned.subtract,
            bins.middle,
            reaches.data_ptr(),
            mirrored.data_ptr(),
            units.data_ptr(),
            along,
            across,
            self.panel.data_ptr(),
        )


@functools.lru_cache(maxsize=32)
def _columns(bins: Bins, first: int, count: int, real: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Of the panel's columns: how far bins and their mirror images are kept, and exp(−2πi·x / w)."""
    columns, filled = range(first, first + count), [bins.h] * (-count % LANES[real])
    own, mirrored = (
        torch.tensor([bins.reach(sign * x) for x in columns] + filled, dtype=INTEGERS[real]) for sign in (1, -1)
    )
    return own, mirrored, roots(torch.arange(first, first + count), bins.w, real)


def _real(base: Tensor | None, models: Sequence[Tensor]) -> torch.dtype:
    tensors = models if base is None else (base, *models)
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _matrix(base: Tensor | None, models: Sequence[Tensor], i: int) -> Matrix:
    return *_base(None if base is None else base[i]), *_models([model[i] for model in models])


def _described(own: Transform) -> tuple[int, tuple[int, ...], int, tuple[int, tuple[int, ...], int] | None]:
    return *own.described, None if own.inner is None else own.inner.described
