"""Inner products of task vectors with each other, from one reading; products and sums in float64."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, Row, working
from .numeric import HEAD, load, place, pointer
from .sums import by_lanes, put_sum, whole_tiles, zeros


@triton.jit
def _tile(
    row, members, found, start, n, FULL: tl.constexpr, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
    ALIGNED: tl.constexpr, TILE: tl.constexpr, LANES: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """What has been found, and this tile's: τ_j · τ_k of every pair of members, k ≤ j, row by row."""
    offsets = start + tl.arange(0, TILE)
    taus, wide, after = (), (), ()
    for k in tl.static_range(K):  # all are on their way before the first is needed
        taus = taus + (load(pointer(row + HEAD + members[k], MODELS[k], ALIGNED), offsets, n, FULL, WORKING),)
    if BASE is not None:
        theta = load(pointer(row + 3, BASE, ALIGNED), offsets, n, FULL, WORKING)
    for k in tl.static_range(K):
        tau = taus[k] if BASE is None else taus[k] - theta
        wide = wide + (by_lanes(tau.to(tl.float64), ALIGNED, LANES),)
    for j in tl.static_range(K):
        for k in tl.static_range(j + 1):
            after = after + (found[j * (j + 1) // 2 + k] + tl.sum(wide[j] * wide[k], 1),)
    return after


@triton.jit
def _span(
    row, members, models, sums, start, n, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
    ALIGNED: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr, LANES: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """All tiles' sums of the pairs of K members, which are models' numbers, each put in both of its places."""
    found = zeros(K * (K + 1) // 2, tl.float64, TILE, LANES)
    whole, stop = whole_tiles(start, n, TILE, TILES)
    for begin in range(start, whole, TILE):
        found = _tile(row, members, found, begin, n, True, K, MODELS, BASE, ALIGNED, TILE, LANES, WORKING)
    for begin in range(whole, stop, TILE):
        found = _tile(row, members, found, begin, n, False, K, MODELS, BASE, ALIGNED, TILE, LANES, WORKING)
    for j in tl.static_range(K):
        for k in tl.static_range(j + 1):
            put_sum(sums + members[j] * models + members[k], found[j * (j + 1) // 2 + k])
            if k < j:
                put_sum(sums + members[k] * models + members[j], found[j * (j + 1) // 2 + k])


@triton.jit(do_not_specialize=["width", "models"])
def gram_tile(
    table, owners, width, sums, models, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
    ALIGNED: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr, LANES: tl.constexpr,
    WORKING: tl.constexpr,
):  # fmt: skip
    """Row: base. sums: float64 [programs, models, models]."""
    row, start, n = place(table, owners, width, SINGLE, TILE * TILES)
    models = tl.cast(models, tl.int64)
    own = sums + tl.program_id(0) * models * models
    if K > 0:
        members = ()
        for k in tl.static_range(K):
            members = members + (k,)
        _span(row, members, K, own, start, n, K, MODELS, BASE, ALIGNED, TILE, TILES, LANES, WORKING)
    else:
        for j in range(1, models):  # two by two; all are read again, from the cache
            for k in range(j):
                _span(row, (k, j), models, own, start, n, 2, (MODELS[0], MODELS[0]), BASE, ALIGNED, TILE, TILES,
                      LANES, WORKING)  # fmt: skip


def gram(base: Tensor | None, models: Sequence[Tensor], sums: Tensor) -> None:
    if not models[0].numel():
        return
    tensors = [t for t in (base, *models) if t is not None]
    launch = Launch(
        "gram", [Row(models[0].numel(), (base,), (models,), sums)], tensors, models, columns=len(models) ** 2
    )
    launch(
        gram_tile, launch.partial, len(models), BASE=base if base is None else base.dtype, WORKING=working(tensors)
    )  # fmt: skip
    launch.add()
