"""Masks and rescaler sums for a vector merged by another method, TALL masks among them."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .launch import TYPES, Launch, Row, aligned, working
from .numeric import HEAD, load, number, place, pointer, store_bits, task_vector


@triton.jit
def _put_task(
    row, k, models, tau, merged, masks, sums, start, n, FULL: tl.constexpr, TALL: tl.constexpr, TILE: tl.constexpr,
    WORKING: tl.constexpr,
):  # fmt: skip
    """One task's mask, and its two sums of this tile."""
    if TALL:
        mask = tl.abs(tau) >= number(row + HEAD + models + k, WORKING) * tl.abs(merged - tau)
    else:
        mask = ((tau > 0) & (merged > 0)) | ((tau < 0) & (merged < 0))
    offsets = start + tl.arange(0, TILE)
    if not FULL:
        mask = mask & (offsets < n)  # beyond n all is 0, and 0 ≥ 0
    store_bits(masks + k * ((n + 7) // 8), start, mask, n, FULL, TILE)
    tl.store(sums + k, tl.sum(tl.abs(tau).to(tl.float64), 0))
    tl.store(sums + models + k, tl.sum(tl.where(mask, tl.abs(merged), 0.0).to(tl.float64), 0))


@triton.jit
def _tile(
    row, models, sums, start, n, FULL: tl.constexpr, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
    MERGED: tl.constexpr, TALL: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    offsets = start + tl.arange(0, TILE)
    theta = load(pointer(row + 3, BASE, ALIGNED), offsets, n, FULL, WORKING)
    merged = load(pointer(row + 4, MERGED, ALIGNED), offsets, n, FULL, WORKING)
    masks = pointer(row + 5, tl.uint8, False)
    if K > 0:
        taus = ()
        for k in tl.static_range(K):  # all are on their way before the first is needed
            taus = taus + (task_vector(row, k, theta, offsets, n, FULL, MODELS[k], ALIGNED, WORKING),)
        for k in tl.static_range(K):
            _put_task(row, k, K, taus[k], merged, masks, sums, start, n, FULL, TALL, TILE, WORKING)
    else:
        for k in range(models):
            tau = task_vector(row, k, theta, offsets, n, FULL, MODELS[0], ALIGNED, WORKING)
            _put_task(row, k, models, tau, merged, masks, sums, start, n, FULL, TALL, TILE, WORKING)


@triton.jit(do_not_specialize=["width", "models"])
def mask_against_tile(
    table, owners, width, sums, models, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
    MERGED: tl.constexpr, TALL: tl.constexpr, ALIGNED: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr,
    WORKING: tl.constexpr,
):  # fmt: skip
    """Row: base, merged, masks; TALL: each model's number. sums: float64 [programs, 2 models]."""
    row, start, n = place(table, owners, width, SINGLE, TILE)
    own = sums + tl.program_id(0).to(tl.int64) * 2 * models
    if start + TILE <= n:
        _tile(row, models, own, start, n, True, K, MODELS, BASE, MERGED, TALL, ALIGNED, TILE, WORKING)
    elif start < n:
        _tile(row, models, own, start, n, False, K, MODELS, BASE, MERGED, TALL, ALIGNED, TILE, WORKING)


def mask_against(
    base: Tensor,
    models: Sequence[Tensor],
    merged: Tensor,
    tall: Sequence[float] | None,
    masks: Tensor,
    sums: Tensor,
) -> None:
    if not base.numel():
        return
    inputs = (base, *models, merged)
    row = Row(base.numel(), (base, merged, masks), (models,) if tall is None else (models, tall), sums)
    launch = Launch("mask_against", [row], inputs, models)
    partial = launch.partial_sums(2 * len(models))
    launch(
        mask_against_tile, partial, len(models), BASE=TYPES[base.dtype], MERGED=TYPES[merged.dtype],
        TALL=tall is not None, ALIGNED=aligned(inputs), WORKING=working(inputs),
    )  # fmt: skip
    launch.add(partial)
