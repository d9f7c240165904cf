"""Masks and rescaler sums for a vector merged by another method, TALL masks among them."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, Row, working
from .numeric import HEAD, load, number, place, pointer, store_bits, task_vector
from .sums import by_lanes, put_sum, whole_tiles, zeros


@triton.jit
def _mask(tau, merged, tall, TALL: tl.constexpr, WORKING: tl.constexpr):
    if TALL:
        return tl.abs(tau) >= number(tall, WORKING) * tl.abs(merged - tau)
    return (tl.where(merged > 0, tau, -tau) > 0) & (tl.abs(merged) > 0)  # of the same sign


@triton.jit
def _tile(
    row, first, models, found, start, n, FULL: tl.constexpr, K: tl.constexpr, MODELS: tl.constexpr,
    BASE: tl.constexpr, MERGED: tl.constexpr, TALL: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
    LANES: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """Puts the tasks' masks. Returns what has been found, and this tile's: a task's two sums."""
    offsets = start + tl.arange(0, TILE)
    theta = load(pointer(row + 3, BASE, ALIGNED), offsets, n, FULL, WORKING)
    merged = load(pointer(row + 4, MERGED, ALIGNED), offsets, n, FULL, WORKING)
    masks, size = pointer(row + 5, tl.uint8, False), tl.abs(merged).to(tl.float64)
    taus, after = (), ()
    for k in tl.static_range(K):  # all are on their way before the first is needed
        taus = taus + (task_vector(row, first + k, theta, offsets, n, FULL, MODELS[k], ALIGNED, WORKING),)
    for k in tl.static_range(K):
        mask = _mask(taus[k], merged, row + HEAD + models + first + k, TALL, WORKING)
        if not FULL:
            mask = mask & (offsets < n)  # beyond n all is 0, and 0 ≥ 0
        store_bits(masks + (first + k) * ((n + 7) // 8), start, mask, n, FULL, TILE)
        after = after + (
            found[2 * k] + tl.sum(by_lanes(tl.abs(taus[k]).to(tl.float64), ALIGNED, LANES), 1),
            found[2 * k + 1] + tl.sum(by_lanes(tl.where(mask, size, 0.0), ALIGNED, LANES), 1),
        )
    return after


@triton.jit
def _span(
    row, first, models, sums, start, n, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
    MERGED: tl.constexpr, TALL: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
    LANES: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """All tiles of K models, from the first on."""
    found = zeros(2 * K, tl.float64, TILE, LANES)
    whole, stop = whole_tiles(start, n, TILE, TILES)
    for begin in range(start, whole, TILE):
        found = _tile(row, first, models, found, begin, n, True, K, MODELS, BASE, MERGED, TALL, ALIGNED, TILE, LANES,
                      WORKING)  # fmt: skip
    for begin in range(whole, stop, TILE):
        found = _tile(row, first, models, found, begin, n, False, K, MODELS, BASE, MERGED, TALL, ALIGNED, TILE, LANES,
                      WORKING)  # fmt: skip
    for k in tl.static_range(K):
        put_sum(sums + first + k, found[2 * k])
        put_sum(sums + models + first + k, found[2 * k + 1])


@triton.jit(do_not_specialize=["width", "models"])
def mask_against_tile(
    table, owners, width, sums, models, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
    MERGED: tl.constexpr, TALL: tl.constexpr, ALIGNED: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr,
    TILES: tl.constexpr, LANES: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """Row: base, merged, masks; TALL: each model's number. sums: float64 [programs, 2 models]."""
    row, start, n = place(table, owners, width, SINGLE, TILE * TILES)
    own = sums + tl.program_id(0).to(tl.int64) * 2 * models
    if K > 0:
        _span(row, 0, K, own, start, n, K, MODELS, BASE, MERGED, TALL, ALIGNED, TILE, TILES, LANES, WORKING)
    else:
        for k in range(models):  # base and merged are read again, from the cache
            _span(row, k, models, own, start, n, 1, MODELS, BASE, MERGED, TALL, ALIGNED, TILE, TILES, LANES,
                  WORKING)  # fmt: skip


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
    launch = Launch("mask_against", [row], inputs, models, columns=2 * len(models))
    launch(
        mask_against_tile, launch.partial, len(models), BASE=base.dtype, MERGED=merged.dtype,
        TALL=tall is not None, WORKING=working(inputs),
    )  # fmt: skip
    launch.add()
