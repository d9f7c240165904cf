"""Where task vectors differ: their variance over models, and how many elements have one."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, Row
from .numeric import divide, load, place, pointer, store, task_vector, task_vectors
from .sums import whole_tiles


@triton.jit
def _squared(tau, mean):
    off = tau - mean
    return off * off


@triton.jit
def _tile(
    row, models, start, n, FULL: tl.constexpr, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
    ALIGNED: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    offsets = start + tl.arange(0, TILE)
    theta = load(pointer(row + 3, BASE, ALIGNED), offsets, n, FULL, WORKING)
    taus, total = task_vectors(row, models, theta, offsets, n, FULL, K, MODELS, ALIGNED, WORKING)
    count = tl.full([TILE], 1.0, WORKING) * models.to(WORKING)
    mean = divide(total, count, WORKING)
    spread = tl.zeros([TILE], WORKING)
    if K > 0:
        for k in tl.static_range(K):
            spread += _squared(taus[k], mean)
    else:
        for k in range(models):  # read again, from the cache
            spread += _squared(task_vector(row, k, theta, offsets, n, FULL, MODELS[0], ALIGNED, WORKING), mean)
    spread = divide(spread, count, WORKING)
    spread = tl.where(spread < float("inf"), spread, 0.0)
    store(pointer(row + 4, WORKING, ALIGNED), offsets, spread, n, FULL)
    return (spread > 0).to(tl.int32)  # beyond n nothing varies


@triton.jit(do_not_specialize=["width", "models"])
def variance_tile(
    table, owners, width, models, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr, ALIGNED: tl.constexpr,
    SINGLE: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """Row: the count of elements that are not 0, in place of the address of sums, base, out. A program counts those of
    all its tiles, since additions to one place in memory wait for each other."""
    row, start, n = place(table, owners, width, SINGLE, TILE * TILES)
    whole, stop = whole_tiles(start, n, TILE, TILES)
    varied = tl.zeros([TILE], tl.int32)
    for begin in range(start, whole, TILE):
        varied += _tile(row, models, begin, n, True, K, MODELS, BASE, ALIGNED, TILE, WORKING)
    if whole < stop:
        varied += _tile(row, models, whole, n, False, K, MODELS, BASE, ALIGNED, TILE, WORKING)
    found = tl.sum(varied, 0).to(tl.int64)
    tl.atomic_add(row + 2, found, mask=found > 0)


def variance(base: Tensor, models: Sequence[Tensor], out: Tensor) -> int:
    """Waits for the number: a cut that is looked for next has its rank by it."""
    if not out.numel():
        return 0
    row = Row(out.numel(), (base, out), (models,))
    launch = Launch("variance", [row], (base, *models, out), models, tiled=True)
    launch(variance_tile, len(models), BASE=base.dtype, WORKING=out.dtype)
    return int(launch.counts)
