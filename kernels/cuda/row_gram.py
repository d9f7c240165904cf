"""Inner products of the rows of task vectors with each other, from one reading; products and sums in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, Row, working
from .numeric import HEAD
from .rows import cut, elements_of_rows, load_rows, place_in_rows


@triton.jit
def _by_lanes(x, EVEN: tl.constexpr, LANES: tl.constexpr):
    """Sums of LANES elements of a row, those of one thread where a row has a warp to itself, or is loaded at once."""
    if EVEN:
        return tl.sum(tl.reshape(x, (x.shape[0], x.shape[1] // LANES, LANES)), 2)
    return tl.sum(tl.reshape(x, (x.shape[0], LANES, x.shape[1] // LANES)), 1)


@triton.jit
def _tile(
    table, members, found, places, there, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
    ALIGNED: tl.constexpr, EVEN: tl.constexpr, LANES: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """What has been found, and these elements': τ_j · τ_k of every pair of members, k ≤ j."""
    taus, wide, after = (), (), ()
    for k in tl.static_range(K):  # all are on their way before the first is needed
        taus = taus + (load_rows(table + HEAD + members[k], places, there, MODELS[k], ALIGNED, WORKING),)
    if BASE is not None:
        theta = load_rows(table + 3, places, there, BASE, ALIGNED, WORKING)
    for k in tl.static_range(K):
        tau = taus[k] if BASE is None else taus[k] - theta
        wide = wide + (tau.to(tl.float64),)
    for j in tl.static_range(K):
        for k in tl.static_range(j + 1):
            after = after + (found[j * (j + 1) // 2 + k] + _by_lanes(wide[j] * wide[k], EVEN, LANES),)
    return after


@triton.jit
def _span(
    table, members, models, products, place, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
    ALIGNED: tl.constexpr, EVEN: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr, WIDTH: tl.constexpr,
    LANES: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """The products of the pairs of K members, which are models' numbers, each put in both of its places."""
    own, rows, columns, start, stop = place
    found = ()
    for _ in tl.static_range(K * (K + 1) // 2):
        found = found + (tl.zeros([TILE // WIDTH, WIDTH // LANES], tl.float64),)
    for begin in range(start, stop, WIDTH):
        places, there = elements_of_rows(own, rows, columns, begin, WIDTH)
        found = _tile(table, members, found, places, there, K, MODELS, BASE, ALIGNED, EVEN, LANES, WORKING)
    products += start // (WIDTH * TILES) * models * models * rows
    for j in tl.static_range(K):
        for k in tl.static_range(j + 1):
            total = tl.sum(found[j * (j + 1) // 2 + k], 1)
            tl.store(products + (members[j] * models + members[k]) * rows + own, total, mask=own < rows)
            if k < j:
                tl.store(products + (members[k] * models + members[j]) * rows + own, total, mask=own < rows)


@triton.jit(do_not_specialize=["width", "columns", "models"])
def row_gram_tile(
    table, owners, width, products, columns, models, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
    ALIGNED: tl.constexpr, EVEN: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
    WIDTH: tl.constexpr, LANES: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """Row: base. products: float64 [parts, models, models, rows]."""
    models, place = tl.cast(models, tl.int64), place_in_rows(table, columns, EVEN, TILE, TILES, WIDTH)
    if K > 0:
        members = ()
        for k in tl.static_range(K):
            members = members + (k,)
        _span(table, members, K, products, place, K, MODELS, BASE, ALIGNED, EVEN, TILE, TILES, WIDTH, LANES,
              WORKING)  # fmt: skip
    else:
        for j in range(1, models):  # two by two; all are read again, from the cache
            for k in range(j):
                _span(table, (k, j), models, products, place, 2, (MODELS[0], MODELS[0]), BASE, ALIGNED, EVEN, TILE,
                      TILES, WIDTH, LANES, WORKING)  # fmt: skip


def row_gram(base: Tensor | None, models: Sequence[Tensor], columns: int, products: Tensor) -> None:
    if not models[0].numel():
        return
    tensors = [t for t in (base, *models) if t is not None]
    launch = Launch("row_gram", [Row(models[0].numel(), (base,), (models,))], tensors, models, columns=len(models) ** 2)
    parts = cut(launch, products.shape[2], columns)
    found = products if parts == 1 else products.new_empty(parts, *products.shape)
    launch.constants["LANES"] = min(launch.constants["LANES"], launch.constants["WIDTH"])
    launch(
        row_gram_tile, found, columns, len(models), BASE=base if base is None else base.dtype, WORKING=working(tensors)
    )  # fmt: skip
    if parts > 1:
        torch.sum(found, 0, out=products)
