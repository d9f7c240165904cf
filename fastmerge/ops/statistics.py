"""Sums over whole tensors and their rows, and over models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import dispatch
from ..arrays import takes_arrays
from ..errors import InputError
from ._arguments import _accumulator, _check, _Flat, _flat, _flat_all, _numbered, _working
from .results import InnerProducts, Moments, Varied

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


@takes_arrays()
def row_gram(base: Tensor | None, models: Sequence[Tensor], columns: int, *, backend: str | None = None) -> Tensor:
    """gram of every row of `columns` elements: float64 [K, K, rows]."""
    import torch

    _check("row_gram", {**({} if base is None else {"base": base}), **_numbered(models)})
    rows = _rows("row_gram", models[0], columns)
    products = models[0].new_empty((len(models), len(models), rows), dtype=torch.float64)
    flat_base = None if base is None else _flat(base)
    dispatch.choose("row_gram", models[0].device, backend)(flat_base, _flat_all(models), columns, products)
    return products


@takes_arrays()
def row_divergence(
    base: Tensor, model: Tensor, columns: int, *, epsilon: float = 1e-8, backend: str | None = None
) -> Tensor:
    """Σ p log(p / q) of every row of `columns` elements, float64 [rows] (Kullback and Leibler 1951).

    p is the softmax of the model's row, q that of base's, with epsilon, which is positive, added to each probability.
    """
    import torch

    _check("row_divergence", {"base": base, "model": model})
    rows = _rows("row_divergence", base, columns)
    if not 0 < epsilon <= 1:
        raise InputError(f"row_divergence: epsilon must be above 0 and not above 1, it is {epsilon}")
    divergences = base.new_empty(rows, dtype=torch.float64)
    kernel = dispatch.choose("row_divergence", base.device, backend)
    kernel(_flat(base), _flat(model), columns, float(epsilon), divergences)
    return divergences


@takes_arrays()
def variance(
    base: Tensor, models: Sequence[Tensor], *, out: Tensor | None = None, backend: str | None = None
) -> Varied:
    """The variance of task vectors over models, Σ_k (τ_k − mean)² / K, 0 where it is not finite.

    `out` has the working type: float32, or float64 as soon as an input is float64.
    """
    out = _working("variance", base, models, out)
    kernel = dispatch.choose("variance", base.device, backend)
    with _Flat(out) as flat:
        nonzero = kernel(_flat(base), _flat_all(models), flat)
    return Varied(out, nonzero)


def _rows(op: str, tensor: Tensor, columns: int) -> int:
    """How many rows a tensor has."""
    if columns < 1 or tensor.numel() % columns:
        raise InputError(f"{op}: {tensor.numel()} elements are not rows of {columns}")
    return tensor.numel() // columns
