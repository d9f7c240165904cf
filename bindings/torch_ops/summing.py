"""Sums over whole tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import ops
from .declare import apart, operator, sums


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
