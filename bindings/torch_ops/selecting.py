"""Selection by magnitude and by chance, and the experts that are cut out by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...errors import InputError, MergeError
from .declare import apart, operator, sums
from .merging import CUTS, DROPS, selection


@operator(f"kept_sums(Tensor base, Tensor[] models, {CUTS}, *, {DROPS}) -> (Tensor magnitude, Tensor kept)")
def kept_sums(
    base: Tensor,
    models: Sequence[Tensor],
    cut_magnitudes: Tensor | None = None,
    cut_indices: Tensor | None = None,
    keep: Tensor | None = None,
    *,
    drop_keys: Sequence[int] | None = None,
    drop_thresholds: Sequence[int] | None = None,
    offset: int = 0,
) -> tuple[Tensor, ...]:
    kept = selection(cut_magnitudes, cut_indices, keep, drop_keys, drop_thresholds)
    return apart(ops.kept_sums(base, models, kept, offset=offset))


@kept_sums.register_fake
def _(base: Tensor, models: Sequence[Tensor], *cuts: Tensor | None, **options: Any) -> tuple[Tensor, ...]:
    return sums(base, len(models)), sums(base, len(models))


@operator(
    "magnitude_histogram(Tensor base, Tensor[] models, *, SymInt? shift=None, SymInt bits=11, "
    "SymInt[]? prefixes=None, bool wide=False) -> Tensor"
)
def magnitude_histogram(base: Tensor, models: Sequence[Tensor], **options: Any) -> Tensor:
    return ops.magnitude_histogram(base, models, **options)


@magnitude_histogram.register_fake
def _(base: Tensor, models: Sequence[Tensor], *, bits: int = ops.TOP_BITS, **options: Any) -> Tensor:
    return base.new_empty((len(models), 2**bits), dtype=torch.int64)


@operator("kth_magnitude(Tensor base, Tensor[] models, SymInt[] ranks) -> (Tensor magnitudes, Tensor indices)")
def kth_magnitude(base: Tensor, models: Sequence[Tensor], ranks: Sequence[int]) -> tuple[Tensor, Tensor]:
    """ranks: those of the first model, then those of the next; results are [K, R], R ranks a model."""
    each, over = divmod(len(ranks), max(len(models), 1))
    if over:
        raise InputError(f"kth_magnitude: {len(models)} models need as many ranks each, there are {len(ranks)} in all")
    rows = [ranks[each * k : each * (k + 1)] for k in range(len(models))]
    found = ops.kth_magnitude(base, models, rows)
    parts = [[[cut[part] for cut in row] for row in found] for part in (0, 1)]
    return base.new_tensor(parts[0], dtype=torch.float64), base.new_tensor(parts[1], dtype=torch.int64)


@kth_magnitude.register_fake
def _(base: Tensor, models: Sequence[Tensor], ranks: Sequence[int]) -> tuple[Tensor, Tensor]:
    shape = len(models), len(ranks) // len(models)
    return sums(base, *shape), base.new_empty(shape, dtype=torch.int64)


@operator(
    "rank_drop(Tensor base, Tensor[] models, SymInt columns, SymInt[] keys, Tensor[] thresholds, *, SymInt start=0, "
    "SymInt? stop=None) -> Tensor"
)
def rank_drop(
    base: Tensor, models: Sequence[Tensor], columns: int, keys: Sequence[int], thresholds: Sequence[Tensor], **part: Any
) -> Tensor:
    """Keys of 64 bits may be written as negative numbers."""
    return ops.rank_drop(base, models, columns, [key % (1 << 64) for key in keys], thresholds, **part)


@rank_drop.register_fake
def _(
    base: Tensor,
    models: Sequence[Tensor],
    columns: int,
    keys: Sequence[int],
    thresholds: Sequence[Tensor],
    *,
    start: int = 0,
    stop: int | None = None,
) -> Tensor:
    n = (base.numel() if stop is None else stop) - start
    return base.new_empty((len(models), ops.packed_bytes(n)), dtype=torch.uint8)


@operator(
    "extract_topk(Tensor base, Tensor model, SymInt k, *, ScalarType? dtype=None) "
    "-> (Tensor counts, Tensor offsets, Tensor values)"
)
def extract_topk(base: Tensor, model: Tensor, k: int, *, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """Exactly k elements; MergeError where NaN leave fewer to choose from."""
    expert = ops.extract_topk(base, model, k, dtype=dtype)
    if expert.values.numel() != k:
        raise MergeError(
            f"extract_topk: NaN leave {expert.values.numel()} of the {k} largest elements of a task vector"
        )
    return tuple(expert)


@extract_topk.register_fake
def _(base: Tensor, model: Tensor, k: int, *, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    blocks = (base.numel() + ops.BLOCK - 1) // ops.BLOCK
    return (
        base.new_empty(blocks, dtype=torch.int32),
        base.new_empty(k, dtype=torch.uint16),
        base.new_empty(k, dtype=dtype or base.dtype),
    )


@operator("scatter_add(Tensor(a!) theta, Tensor counts, Tensor offsets, Tensor values, float scale=1.0) -> ()")
def scatter_add(theta: Tensor, counts: Tensor, offsets: Tensor, values: Tensor, scale: float = 1.0) -> None:
    ops.scatter_add(theta, ops.Expert(counts, offsets, values), scale)


@operator("gather(Tensor theta, Tensor counts, Tensor offsets) -> Tensor")
def gather(theta: Tensor, counts: Tensor, offsets: Tensor) -> Tensor:
    return ops.gather(theta, ops.Expert(counts, offsets, theta))


@gather.register_fake
def _(theta: Tensor, counts: Tensor, offsets: Tensor) -> Tensor:
    return theta.new_empty(offsets.shape)


@operator("scatter(Tensor(a!) theta, Tensor[] counts, Tensor[] offsets, Tensor[] values) -> ()")
def scatter(theta: Tensor, counts: Sequence[Tensor], offsets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    ops.scatter(theta, [ops.Expert(*parts) for parts in zip(counts, offsets, values, strict=True)])


@scatter_add.register_fake
@scatter.register_fake
def _(theta: Tensor, *expert: Any) -> None:
    """Changes theta, and gives nothing."""
