"""LoRA merged into its base: base + scale · up · down."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, Row
from .numeric import load, number, pointer, store


@triton.jit
def _tile(
    row, rank, columns, first, start, n, FULL: tl.constexpr, BASE: tl.constexpr, OUT: tl.constexpr,
    ALIGNED: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    offsets = start + tl.arange(0, TILE)
    within = offsets < n
    place = tl.where(within, first + offsets, 0)
    up = pointer(row + 5, WORKING, False) + place // columns * rank
    down = pointer(row + 6, WORKING, False) + place % columns
    delta = tl.load(up) * tl.load(down)
    step = tl.cast(columns, tl.int64)
    for j in range(1, rank):
        delta = delta + tl.load(up + j) * tl.load(down + j * step)
    theta = load(pointer(row + 3, BASE, ALIGNED), offsets, n, FULL, WORKING)
    scale = number(row + 7, WORKING)
    store(pointer(row + 4, OUT, ALIGNED), offsets, theta + scale * delta, n, FULL)


@triton.jit(do_not_specialize=["width", "rank", "columns", "first"])
def low_rank_tile(
    table, owners, width, rank, columns, first, BASE: tl.constexpr, OUT: tl.constexpr, ALIGNED: tl.constexpr,
    SINGLE: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """Row: base, out, up, down, scale. first: the first element's column in row 0 of the product."""
    n = tl.load(table)
    start = tl.program_id(0).to(tl.int64) * TILE
    if start + TILE <= n:
        _tile(table, rank, columns, first, start, n, True, BASE, OUT, ALIGNED, TILE, WORKING)
    elif start < n:
        _tile(table, rank, columns, first, start, n, False, BASE, OUT, ALIGNED, TILE, WORKING)


def low_rank(base: Tensor, up: Tensor, down: Tensor, scale: float, column: int, out: Tensor) -> None:
    if not base.numel():
        return
    row = Row(base.numel(), (base, out, up, down, scale))
    Launch("low_rank", [row], (base, out, up))(
        low_rank_tile, *down.shape, column, BASE=base.dtype, OUT=out.dtype,
        WORKING=up.dtype,
    )  # fmt: skip
