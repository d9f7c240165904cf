"""Merging: masks, combinations and what applies them."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...errors import InputError
from .declare import apart, count, operator, sums

# Which elements take part, in two parts: torch wants tensors before the arguments that have names only.
CUTS = "Tensor? cut_magnitudes=None, Tensor? cut_indices=None, Tensor? keep=None"
DROPS = "SymInt[]? drop_keys=None, SymInt[]? drop_thresholds=None, SymInt offset=0"


def selection(
    cut_magnitudes: Tensor | None,
    cut_indices: Tensor | None,
    keep: Tensor | None,
    drop_keys: Sequence[int] | None,
    drop_thresholds: Sequence[int] | None,
) -> ops.Kept:
    """`ops.Kept` of plain arguments.

    Cuts: [K, 2] each, the top and the bottom one of every model, as kth_magnitude gives them; keys of 64 bits may be
    written as negative numbers.
    """
    trim = drop = None
    _need_both("cut_magnitudes and cut_indices", cut_magnitudes, cut_indices)
    _need_both("drop_keys and drop_thresholds", drop_keys, drop_thresholds)
    if cut_magnitudes is not None and cut_indices is not None:
        rows = zip(cut_magnitudes.tolist(), cut_indices.tolist(), strict=True)
        trim = [ops.Window(*(ops.Cut(*cut) for cut in zip(*row, strict=True))) for row in rows]
    if drop_keys is not None and drop_thresholds is not None:
        pairs = zip(drop_keys, drop_thresholds, strict=True)
        drop = [ops.Drop(key % (1 << 64), threshold) for key, threshold in pairs]
    return ops.Kept(trim, drop, keep)


def _need_both(names: str, one: Sized | None, other: Sized | None) -> None:
    if (None if one is None else len(one)) != (None if other is None else len(other)):
        raise InputError(f"{names} belong together: give both, as many of the one as of the other")


def numbers(weights: Tensor | None) -> list[float] | None:
    return None if weights is None else weights.tolist()


@operator(
    "elect(Tensor base, Tensor[] models, *, ScalarType? dtype=None) "
    "-> (Tensor unified, Tensor masks, Tensor magnitude, Tensor kept)"
)
def elect(base: Tensor, models: Sequence[Tensor], *, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    elected = ops.elect(base, models, dtype=dtype)
    return elected.unified, elected.masks, *apart((elected.magnitude, elected.kept))


@elect.register_fake
def _(base: Tensor, models: Sequence[Tensor], *, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    k = len(models)
    return base.new_empty(base.shape, dtype=dtype), fake_masks(base, k), sums(base, k), sums(base, k)


@operator("modulate(Tensor base, Tensor unified, Tensor mask, float scale, *, ScalarType? dtype=None) -> Tensor")
def modulate(base: Tensor, unified: Tensor, mask: Tensor, scale: float, *, dtype: torch.dtype | None = None) -> Tensor:
    return ops.modulate(base, unified, mask, scale, dtype=dtype)


@modulate.register_fake
def _(base: Tensor, unified: Tensor, mask: Tensor, scale: float, *, dtype: torch.dtype | None = None) -> Tensor:
    return base.new_empty(base.shape, dtype=dtype)


@operator(
    "mask_against(Tensor base, Tensor[] models, Tensor merged, *, float[]? tall=None) "
    "-> (Tensor masks, Tensor magnitude, Tensor kept)"
)
def mask_against(
    base: Tensor, models: Sequence[Tensor], merged: Tensor, *, tall: Sequence[float] | None = None
) -> tuple[Tensor, ...]:
    masked = ops.mask_against(base, models, merged, tall=tall)
    return masked.masks, *apart((masked.magnitude, masked.kept))


@mask_against.register_fake
def _(
    base: Tensor, models: Sequence[Tensor], merged: Tensor, *, tall: Sequence[float] | None = None
) -> tuple[Tensor, ...]:
    return fake_masks(base, len(models)), sums(base, len(models)), sums(base, len(models))


@operator(
    f"combine(Tensor? base, Tensor[] models, Tensor? weights=None, {CUTS}, *, {DROPS}, float scale=1.0, "
    'bool normalize=False, str consensus="sum", str merge="sum", float[]? factors=None, bool as_delta=False, '
    "ScalarType? dtype=None) -> (Tensor merged, Tensor nonfinite)"
)
def combine(
    base: Tensor | None,
    models: Sequence[Tensor],
    weights: Tensor | None = None,
    cut_magnitudes: Tensor | None = None,
    cut_indices: Tensor | None = None,
    keep: Tensor | None = None,
    *,
    drop_keys: Sequence[int] | None = None,
    drop_thresholds: Sequence[int] | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    kept = selection(cut_magnitudes, cut_indices, keep, drop_keys, drop_thresholds)
    merged = ops.combine(base, models, numbers(weights), kept=kept, **options)
    return merged.merged, merged.merged.new_tensor(merged.nonfinite, dtype=torch.int64)


@combine.register_fake
def _(
    base: Tensor | None,
    models: Sequence[Tensor],
    *others: Tensor | None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    like = models[0] if base is None else base
    return like.new_empty(like.shape, dtype=dtype), count(like)


@operator(
    "blend(Tensor? base, Tensor[] models, Tensor weights, *, SymInt inner, SymInt offset=0, ScalarType? dtype=None) "
    "-> (Tensor merged, Tensor nonfinite)"
)
def blend(
    base: Tensor | None,
    models: Sequence[Tensor],
    weights: Tensor,
    *,
    inner: int,
    offset: int = 0,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    merged = ops.blend(base, models, weights, inner=inner, offset=offset, dtype=dtype)
    return merged.merged, merged.merged.new_tensor(merged.nonfinite, dtype=torch.int64)


@blend.register_fake
def _(
    base: Tensor | None, models: Sequence[Tensor], weights: Tensor, *, dtype: torch.dtype | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    like = models[0] if base is None else base
    return like.new_empty(like.shape, dtype=dtype), count(like)


@operator("low_rank(Tensor base, Tensor up, Tensor down, float scale=1.0, *, SymInt first=0) -> Tensor")
def low_rank(base: Tensor, up: Tensor, down: Tensor, scale: float = 1.0, *, first: int = 0) -> Tensor:
    return ops.low_rank(base, up, down, scale, first=first)


@low_rank.register_fake
def _(base: Tensor, up: Tensor, down: Tensor, scale: float = 1.0, *, first: int = 0) -> Tensor:
    return base.new_empty(base.shape)


@operator("delta_sum(Tensor base, Tensor[] models, Tensor? weights=None) -> Tensor")
def delta_sum(base: Tensor, models: Sequence[Tensor], weights: Tensor | None = None) -> Tensor:
    return ops.delta_sum(base, models, numbers(weights))


@delta_sum.register_fake
def _(base: Tensor, models: Sequence[Tensor], weights: Tensor | None = None) -> Tensor:
    return base.new_empty(base.shape, dtype=ops.working_dtype([base, *models]))


@operator(
    "geodesic(Tensor base, Tensor model, float t, *, ScalarType? dtype=None) -> (Tensor merged, Tensor nonfinite)"
)
def geodesic(base: Tensor, model: Tensor, t: float, *, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    merged = ops.geodesic(base, model, t, dtype=dtype)
    return merged.merged, merged.merged.new_tensor(merged.nonfinite, dtype=torch.int64)


@geodesic.register_fake
def _(base: Tensor, model: Tensor, t: float, *, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    return base.new_empty(base.shape, dtype=dtype), count(base)


@operator("pack_bits(Tensor mask) -> Tensor")
def pack_bits(mask: Tensor) -> Tensor:
    return ops.pack_bits(mask)


@pack_bits.register_fake
def _(mask: Tensor) -> Tensor:
    return mask.new_empty(ops.packed_bytes(mask.numel()), dtype=torch.uint8)


@operator("unpack_bits(Tensor packed, SymInt[] shape) -> Tensor")
def unpack_bits(packed: Tensor, shape: Sequence[int]) -> Tensor:
    return ops.unpack_bits(packed, shape)


@unpack_bits.register_fake
def _(packed: Tensor, shape: Sequence[int]) -> Tensor:
    return packed.new_empty(shape, dtype=torch.bool)


def fake_masks(like: Tensor, k: int) -> Tensor:
    return like.new_empty((k, ops.packed_bytes(like.numel())), dtype=torch.uint8)
