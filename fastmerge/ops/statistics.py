"""Sums over whole tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import dispatch
from ..arrays import takes_arrays
from ._arguments import _accumulator, _check, _flat, _flat_all, _numbered
from .results import InnerProducts, Moments

if TYPE_CHECKING:
    from torch import Tensor


@takes_arrays()
def moments(
    base: Tensor,
    models: Sequence[Tensor],
    *,
    sums: Tensor | None = None,
    nonfinite: Tensor | None = None,
    backend: str | None = None,
) -> Moments:
    """Σ|τ_k|, Σ τ_k, Σ τ_k², max|τ_k| and the non-finite elements of every model in one reading.

    `sums`: float64 [4, K]; `nonfinite`: int64 [K]. Both are added to (max|τ_k| is raised).
    """
    import torch

    _check("moments", {"base": base, **_numbered(models)})
    sums = _accumulator(sums, (4, len(models)), base)
    nonfinite = _accumulator(nonfinite, (len(models),), base, torch.int64, "nonfinite")
    dispatch.choose("moments", base.device, backend)(_flat(base), _flat_all(models), sums, nonfinite)
    return Moments(sums[0], sums[1], sums[2], sums[3], nonfinite)


@takes_arrays()
def inner_products(
    g: Tensor, models: Sequence[Tensor], *, sums: Tensor | None = None, backend: str | None = None
) -> InnerProducts:
    """⟨g, θ_k⟩, ‖θ_k‖² and ‖g‖² for all K in one reading: the scores of a Frank-Wolfe step. `sums`: float64 [2K+1]."""
    _check("inner_products", {"g": g, **_numbered(models)})
    k = len(models)
    sums = _accumulator(sums, (2 * k + 1,), g)
    dispatch.choose("inner_products", g.device, backend)(_flat(g), _flat_all(models), sums)
    return InnerProducts(sums[:k], sums[k : 2 * k], sums[2 * k])


@takes_arrays()
def gram(
    base: Tensor | None, models: Sequence[Tensor], *, sums: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """⟨τ_j, τ_k⟩ of all pairs of models in one reading, without a base ⟨θ_j, θ_k⟩: float64 [K, K], added to `sums`."""
    tensors = {**({} if base is None else {"base": base}), **_numbered(models)}
    _check("gram", tensors)
    sums = _accumulator(sums, (len(models), len(models)), models[0])
    flat_base = None if base is None else _flat(base)
    dispatch.choose("gram", models[0].device, backend)(flat_base, _flat_all(models), sums)
    return sums
