"""The high-pass filter of FR-Merging."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import batching, dispatch
from ..arrays import takes_arrays
from ..cutoff import Convention, Cutoff
from ..errors import InputError
from ._arguments import _check, _empty, _Flat, _flat, _matrix, _numbered, working_dtype
from .results import Combined

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@takes_arrays()
def highpass(
    x: Tensor,
    *,
    cutoff: float | None = None,
    bins: float | None = None,
    convention: Convention = "paper",
    ratio: float | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The high frequencies of every matrix of x [..., H, W] (Zheng & Wang 2025, Eq. 1-2): float32, or float64 as x is.

    `cutoff` (0.3 if nothing is given), `bins`, or convention="released" and `ratio` (0.7) say which (fastmerge.cutoff).
    Right to 1e-6 of the largest |x| (float64: 1e-13), and to the bit the same for any number of threads.
    """
    limits = Cutoff(cutoff, bins, convention, ratio)
    wide = working_dtype([x])
    out = _empty(x, wide) if out is None else out
    _check("highpass", {"x": x}, out=out)
    if out.dtype != wide:
        raise InputError(f"highpass: out must be {wide}, the working type of this input, not {out.dtype}")
    h, w = _matrix("highpass", "x", x)
    if x.numel():
        kernel = dispatch.choose("highpass", x.device, backend)
        with _Flat(out, (-1, h, w)) as flat:
            kernel(_flat(x, (-1, h, w)), convention, limits.limit(h, w), flat)
    return out


@takes_arrays()
def highpass_merge(
    base: Tensor,
    models: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    *,
    cutoff: float | None = None,
    bins: float | None = None,
    convention: Convention = "paper",
    ratio: float | None = None,
    scale: float = 1.0,
    as_delta: bool = False,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Combined:
    """base + scale · highpass(Σ_k w_k · τ_k), rounded once (Zheng & Wang 2025): one filter, since it is linear.

    base and models: [..., H, W]; weights: K numbers, ones by default; the filter as in `highpass`, and as right (of the
    largest |Σ_k w_k · τ_k|, before scale and rounding); `as_delta` leaves base off. Without `out` the result has
    `dtype`, or base's.
    """
    limits = Cutoff(cutoff, bins, convention, ratio)
    weights = [1.0] * len(models) if weights is None else [float(w) for w in weights]
    if len(weights) != len(models):
        raise InputError(f"highpass_merge: {len(models)} models need as many weights, there are {len(weights)}")
    out = _empty(base, dtype) if out is None else out
    _check("highpass_merge", {"base": base, **_numbered(models)}, out=out)
    h, w = _matrix("highpass_merge", "base", base)
    nonfinite = 0
    if base.numel():
        kernel = dispatch.choose("highpass_merge", base.device, backend)
        first, *others = (_flat(t, (-1, h, w)) for t in (base, *models))
        limit = limits.limit(h, w)
        with _Flat(out, (-1, h, w)) as flat:
            nonfinite = kernel(first, others, weights, convention, limit, float(scale), as_delta, flat)
    return Combined(out, nonfinite)


class Filtered:
    """highpass_merge in pieces: Σ_k w_k · τ_k filtered, of which `write` merges any elements, to the bits of the whole.

    base and models: [..., H, W], and as they are until the last piece; limits: the filter. Between two pieces it holds
    the transforms of one matrix, on a GPU of those that go through together; in order they cost least. `each`: filter
    every model on its own, which costs K filters and no more for `each_magnitude`; the sum is that of what is filtered.
    """

    def __init__(
        self,
        base: Tensor,
        models: Sequence[Tensor],
        weights: Sequence[float],
        limits: Cutoff,
        *,
        each: bool = False,
        backend: str | None = None,
    ) -> None:
        if len(weights) != len(models):
            raise InputError(f"Filtered: {len(models)} models need as many weights, there are {len(weights)}")
        _check("Filtered", {"base": base, **_numbered(models)})
        h, w = _matrix("Filtered", "base", base)
        self.like = base
        self._kernel = dispatch.choose("Filtered", base.device, backend)
        first, *others = (_flat(t, (-1, h, w)) for t in (base, *models))
        self._given = first, others, list(map(float, weights)), limits.convention, limits.limit(h, w)
        self._each, self._backend = each, backend

    @functools.cached_property
    def _filtered(self) -> Any:
        """What holds transforms between pieces."""
        return self._kernel(*self._given, self._each)

    def write(self, start: int, out: Tensor, *, scale: float = 1.0, as_delta: bool = False) -> int:
        """Merge out's elements, of which the first is number `start` in C order; returns its non-finite ones.

        out: 1-D, contiguous; `scale` and `as_delta` as in highpass_merge.
        """
        stop = start + out.numel()
        if not 0 <= start <= stop <= self.like.numel() or out.ndim != 1 or not out.is_contiguous():
            raise InputError(
                f"Filtered: elements {start} to {stop} of {self.like.numel()} go to a 1-D contiguous out, "
                f"not {list(out.shape)}"
            )
        out = out.detach()
        line = batching.line.get()
        if line is not None and out.numel() == self.like.numel() and not self._each:
            kernel = dispatch.choose("highpass_merge", out.device, self._backend)
            found = kernel(*self._given, float(scale), as_delta, out.view(self._given[0].shape))
        else:
            with batching.at_once():
                found = self._filtered.write(start, float(scale), as_delta, out)
        if callable(found):  # a GPU is still at it
            return found() if line is None else line.tell(found)
        return found  # type: ignore[no-any-return]

    def each_magnitude(self) -> list[float]:
        """Σ|G(τ_k)| of every model, in float64, once every element is written; needs `each`."""
        if not self._each:
            raise InputError("Filtered: the models were filtered together; pass each=True for their magnitudes")
        return list(self._filtered.each_magnitude())

    @staticmethod
    def deltas(
        base: Tensor, models: Sequence[Tensor], limits: Cutoff, outs: Sequence[Tensor], *, backend: str | None = None
    ) -> None:
        """G(τ_k) of every model to its out: 1-D, contiguous, of the working type; where there is a kernel, in one
        reading, for which the transforms of a matrix of each model are held."""
        _check("Filtered", {"base": base, **_numbered(models)})
        wide, n = working_dtype([base, *models]), base.numel()
        if len(outs) != len(models) or any(
            out.dtype != wide or out.shape != (n,) or not out.is_contiguous() for out in outs
        ):
            raise InputError(f"Filtered: {len(models)} models need as many outs of {n} contiguous numbers, {wide}")
        h, w = _matrix("Filtered", "base", base)
        kernel: Any = dispatch.choose("Filtered", base.device, backend)
        if hasattr(kernel, "deltas"):
            first, *others = (_flat(t, (-1, h, w)) for t in (base, *models))
            kernel.deltas(first, others, limits.convention, limits.limit(h, w), outs)
            return
        counts: list[batching.Result] = []  # of what is not finite, which is met again
        with batching.batch():
            for model, out in zip(models, outs, strict=True):
                with batching.waiting(counts.append):
                    Filtered(base, [model], [1.0], limits, backend=backend).write(0, out, as_delta=True)

    @staticmethod
    def magnitudes(
        base: Tensor, models: Sequence[Tensor], limits: Cutoff, *, backend: str | None = None
    ) -> list[float]:
        """Σ|G(τ_k)| of every model, in float64. It holds the transforms of a matrix of each of them, on a GPU all that
        comes of one at least."""
        _check("Filtered", {"base": base, **_numbered(models)})
        h, w = _matrix("Filtered", "base", base)
        kernel: Any = dispatch.choose("Filtered", base.device, backend)
        first, *others = (_flat(t, (-1, h, w)) for t in (base, *models))
        return list(kernel.magnitudes(first, others, limits.convention, limits.limit(h, w)))
