"""PCB-Merging's competition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import ops
from .declare import count, operator


@operator("compete(Tensor base, Tensor[] models, int own, *, float least, float most) -> Tensor")
def compete(base: Tensor, models: Sequence[Tensor], own: int, *, least: float, most: float) -> Tensor:
    return ops.compete(base, models, own, least=least, most=most)


@compete.register_fake
def _(base: Tensor, models: Sequence[Tensor], own: int, *, least: float, most: float) -> Tensor:
    return base.new_empty(base.shape, dtype=ops.working_dtype([base, *models]))


@operator(
    "balance(Tensor base, Tensor[] models, Tensor bounds, *, float scale=1.0, ScalarType? dtype=None) "
    "-> (Tensor merged, Tensor nonfinite)"
)
def balance(
    base: Tensor,
    models: Sequence[Tensor],
    bounds: Tensor,
    *,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """bounds: [K, 4], for each model least, most, low and high."""
    merged = ops.balance(base, models, [ops.Bounds(*own) for own in bounds.tolist()], scale=scale, dtype=dtype)
    return merged.merged, merged.merged.new_tensor(merged.nonfinite, dtype=torch.int64)


@balance.register_fake
def _(
    base: Tensor,
    models: Sequence[Tensor],
    bounds: Tensor,
    *,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    return base.new_empty(base.shape, dtype=dtype), count(base)
