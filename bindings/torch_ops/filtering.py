"""FR-Merging's filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import ops
from .declare import count, operator
from .merging import numbers

FILTER = 'float? cutoff=None, float? bins=None, str convention="paper", float? ratio=None'


@operator(f"highpass(Tensor x, *, {FILTER}) -> Tensor")
def highpass(x: Tensor, **limits: Any) -> Tensor:
    return ops.highpass(x, **limits)


@highpass.register_fake
def _(x: Tensor, **limits: Any) -> Tensor:
    return x.new_empty(x.shape, dtype=ops.working_dtype([x]))


@operator(
    f"highpass_merge(Tensor base, Tensor[] models, Tensor? weights=None, *, {FILTER}, float scale=1.0, "
    "bool as_delta=False, ScalarType? dtype=None) -> (Tensor merged, Tensor nonfinite)"
)
def highpass_merge(
    base: Tensor, models: Sequence[Tensor], weights: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    merged = ops.highpass_merge(base, models, numbers(weights), **options)
    return merged.merged, merged.merged.new_tensor(merged.nonfinite, dtype=torch.int64)


@highpass_merge.register_fake
def _(
    base: Tensor,
    models: Sequence[Tensor],
    weights: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    return base.new_empty(base.shape, dtype=dtype), count(base)
