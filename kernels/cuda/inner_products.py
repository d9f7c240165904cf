"""The inner products that a Frank-Wolfe step needs, from one reading; products and sums in float64."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, Row
from .numeric import HEAD, load, place, pointer
from .sums import by_lanes, put_sum, whole_tiles, zeros


@triton.jit
def _tile(
    row, first, found, start, n, FULL: tl.constexpr, K: tl.constexpr, MODELS: tl.constexpr, GRADIENT: tl.constexpr,
    ALIGNED: tl.constexpr, TILE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """What has been found, and this tile's: g², then a model's g·θ and θ²."""
    offsets = start + tl.arange(0, TILE)
    gradient = by_lanes(load(pointer(row + 3, GRADIENT, ALIGNED), offsets, n, FULL, tl.float64), ALIGNED, LANES)
    thetas = ()
    for k in tl.static_range(K):  # all are on their way before the first is needed
        model = pointer(row + HEAD + first + k, MODELS[k], ALIGNED)
        thetas = thetas + (by_lanes(load(model, offsets, n, FULL, tl.float64), ALIGNED, LANES),)
    after = (found[0] + tl.sum(gradient * gradient, 1),)
    for k in tl.static_range(K):
        after = after + (
            found[2 * k + 1] + tl.sum(gradient * thetas[k], 1),
            found[2 * k + 2] + tl.sum(thetas[k] * thetas[k], 1),
        )
    return after


@triton.jit
def _span(
    row, first, models, sums, start, n, K: tl.constexpr, MODELS: tl.constexpr, GRADIENT: tl.constexpr,
    ALIGNED: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """All tiles' sums of K models, from the first on, and the gradient's."""
    found = zeros(2 * K + 1, tl.float64, TILE, LANES)
    whole, stop = whole_tiles(start, n, TILE, TILES)
    for begin in range(start, whole, TILE):
        found = _tile(row, first, found, begin, n, True, K, MODELS, GRADIENT, ALIGNED, TILE, LANES)
    for begin in range(whole, stop, TILE):
        found = _tile(row, first, found, begin, n, False, K, MODELS, GRADIENT, ALIGNED, TILE, LANES)
    put_sum(sums + 2 * models, found[0])
    for k in tl.static_range(K):
        put_sum(sums + first + k, found[2 * k + 1])
        put_sum(sums + models + first + k, found[2 * k + 2])


@triton.jit(do_not_specialize=["width", "models"])
def inner_products_tile(
    table, owners, width, sums, models, K: tl.constexpr, MODELS: tl.constexpr, GRADIENT: tl.constexpr,
    ALIGNED: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Row: g. sums: float64 [programs, 2 models + 1]."""
    row, start, n = place(table, owners, width, SINGLE, TILE * TILES)
    own = sums + tl.program_id(0).to(tl.int64) * (2 * models + 1)
    if K > 0:
        _span(row, 0, K, own, start, n, K, MODELS, GRADIENT, ALIGNED, TILE, TILES, LANES)
    else:
        for k in range(models):  # the gradient is read again, from the cache
            _span(row, k, models, own, start, n, 1, MODELS, GRADIENT, ALIGNED, TILE, TILES, LANES)


def inner_products(g: Tensor, models: Sequence[Tensor], sums: Tensor) -> None:
    if not g.numel():
        return
    row = Row(g.numel(), (g,), (models,), sums)
    launch = Launch("inner_products", [row], (g, *models), models, columns=2 * len(models) + 1)
    launch(inner_products_tile, launch.partial, len(models), GRADIENT=g.dtype)
    launch.add()
