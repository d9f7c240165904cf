"""PCB-Merging's ops: what elements score in the competition of task vectors, and the mean by what they do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import dispatch
from ..arrays import takes_arrays
from ..errors import InputError
from ._arguments import _check, _empty, _Flat, _flat, _flat_all, _numbered, _working
from .results import Bounds, Combined

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@takes_arrays()
def compete(
    base: Tensor,
    models: Sequence[Tensor],
    own: int,
    *,
    least: float,
    most: float,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """exp(K · n²) · tanh(τ · Σ_j τ_j) of models[own], 0 where that is not positive (Du et al. 2024, Section 3.2).

    |τ| is clamped to least … most, and n goes from 0 to 1 between these. Both functions are sums and products of which
    all backends have the same bits, within a few units of the last place. `out` has the working type: float32, or
    float64 as soon as an input is float64.
    """
    out = _working("compete", base, models, out)
    if not 0 <= own < len(models):
        raise InputError(f"compete: own is {own}, the models are 0 to {len(models) - 1}")
    _check_bounds("compete", [Bounds(least, most)])
    kernel = dispatch.choose("compete", base.device, backend)
    with _Flat(out) as flat:
        kernel(_flat(base), _flat_all(models), own, float(least), float(most), flat)
    return out


@takes_arrays()
def balance(
    base: Tensor,
    models: Sequence[Tensor],
    bounds: Sequence[Bounds],
    *,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Combined:
    """base + scale · Σ_k s_k τ_k / Σ_k s_k, s_k going from 0 to 1 as the score of `compete` goes from low to high.

    bounds: one a model; |τ_k| is clamped as there. Where no model has a share the result is base's (Du et al. 2024,
    Section 3.2). Without `out` the result has `dtype`, or base's. Elements where Σ_k τ_k is not finite count too.
    """
    out = _empty(base, dtype) if out is None else out
    _check("balance", {"base": base, **_numbered(models)}, out=out)
    if len(bounds) != len(models):
        raise InputError(f"balance: {len(models)} models need as many bounds, there are {len(bounds)}")
    _check_bounds("balance", bounds)
    kernel = dispatch.choose("balance", base.device, backend)
    with _Flat(out) as flat:
        plain = [(float(least), float(most), float(low), float(high)) for least, most, low, high in bounds]
        nonfinite = kernel(_flat(base), _flat_all(models), plain, float(scale), flat)
    return Combined(out, nonfinite)


def _check_bounds(op: str, bounds: Sequence[Bounds]) -> None:
    for own in bounds:
        if not (all(map(math.isfinite, own)) and 0 <= own[0] <= own[1]):
            raise InputError(f"{op}: bounds must be finite, and 0 ≤ least ≤ most; these are {tuple(own)}")
