"""The inner products that a Frank-Wolfe step needs, from one reading; products and sums in float64."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .launch import TYPES, Launch, Row, aligned
from .numeric import HEAD, load, place, pointer


@triton.jit
def _put_model(theta, gradient, sums, k, models):
    """One model's product and squared norm of this tile."""
    tl.store(sums + k, tl.sum(gradient * theta, 0))
    tl.store(sums + models + k, tl.sum(theta * theta, 0))


@triton.jit
def _tile(
    row, models, sums, start, n, FULL: tl.constexpr, K: tl.constexpr, MODELS: tl.constexpr, GRADIENT: tl.constexpr,
    ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    offsets = start + tl.arange(0, TILE)
    gradient = load(pointer(row + 3, GRADIENT, ALIGNED), offsets, n, FULL, tl.float64)
    tl.store(sums + 2 * models, tl.sum(gradient * gradient, 0))
    if K > 0:
        thetas = ()
        for k in tl.static_range(K):  # all are on their way before the first is needed
            model = pointer(row + HEAD + k, MODELS[k], ALIGNED)
            thetas = thetas + (load(model, offsets, n, FULL, tl.float64),)
        for k in tl.static_range(K):
            _put_model(thetas[k], gradient, sums, k, K)
    else:
        for k in range(models):
            model = pointer(row + HEAD + k, MODELS[0], ALIGNED)
            _put_model(load(model, offsets, n, FULL, tl.float64), gradient, sums, k, models)


@triton.jit(do_not_specialize=["width", "models"])
def inner_products_tile(
    table, owners, width, sums, models, K: tl.constexpr, MODELS: tl.constexpr, GRADIENT: tl.constexpr,
    ALIGNED: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Row: g. sums: float64 [programs, 2 models + 1]."""
    row, start, n = place(table, owners, width, SINGLE, TILE)
    own = sums + tl.program_id(0).to(tl.int64) * (2 * models + 1)
    if start + TILE <= n:
        _tile(row, models, own, start, n, True, K, MODELS, GRADIENT, ALIGNED, TILE)
    elif start < n:
        _tile(row, models, own, start, n, False, K, MODELS, GRADIENT, ALIGNED, TILE)


def inner_products(g: Tensor, models: Sequence[Tensor], sums: Tensor) -> None:
    if not g.numel():
        return
    launch = Launch("inner_products", [Row(g.numel(), (g,), (models,), sums)], (g, *models), models)
    partial = launch.partial_sums(2 * len(models) + 1)
    launch(inner_products_tile, partial, len(models), GRADIENT=TYPES[g.dtype], ALIGNED=aligned((g, *models)))
    launch.add(partial)
