"""Sums over whole tensors and their rows, and over models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import ops
from .declare import apart, count, operator, sums


@operator(
    "moments(Tensor base, Tensor[] models) "
    "-> (Tensor magnitude, Tensor total, Tensor energy, Tensor peak, Tensor nonfinite)"
)
def moments(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return apart(ops.moments(base, models))


@moments.register_fake
def _(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    k = len(models)
    return *(sums(base, k) for _ in range(4)), base.new_empty(k, dtype=torch.int64)


@operator("inner_products(Tensor g, Tensor[] models) -> (Tensor dots, Tensor norms, Tensor gradient_norm)")
def inner_products(g: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return apart(ops.inner_products(g, models))


@inner_products.register_fake
def _(g: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return sums(g, len(models)), sums(g, len(models)), sums(g)


@operator("gram(Tensor? base, Tensor[] models) -> Tensor")
def gram(base: Tensor | None, models: Sequence[Tensor]) -> Tensor:
    return ops.gram(base, models)


@gram.register_fake
def _(base: Tensor | None, models: Sequence[Tensor]) -> Tensor:
    return sums(models[0], len(models), len(models))


@operator("row_gram(Tensor? base, Tensor[] models, SymInt columns) -> Tensor")
def row_gram(base: Tensor | None, models: Sequence[Tensor], columns: int) -> Tensor:
    return ops.row_gram(base, models, columns)


@row_gram.register_fake
def _(base: Tensor | None, models: Sequence[Tensor], columns: int) -> Tensor:
    return sums(models[0], len(models), len(models), models[0].numel() // columns)


@operator("row_divergence(Tensor base, Tensor model, SymInt columns, *, float epsilon=1e-8) -> Tensor")
def row_divergence(base: Tensor, model: Tensor, columns: int, *, epsilon: float = 1e-8) -> Tensor:
    return ops.row_divergence(base, model, columns, epsilon=epsilon)


@row_divergence.register_fake
def _(base: Tensor, model: Tensor, columns: int, *, epsilon: float = 1e-8) -> Tensor:
    return sums(base, base.numel() // columns)


@operator("variance(Tensor base, Tensor[] models) -> (Tensor variance, Tensor nonzero)")
def variance(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    varied = ops.variance(base, models)
    return varied.variance, varied.variance.new_tensor(varied.nonzero, dtype=torch.int64)


@variance.register_fake
def _(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return base.new_empty(base.shape, dtype=ops.working_dtype([base, *models])), count(base)
