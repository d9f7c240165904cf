"""LoRA merged into its base: base + scale · up · down."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, Row
from .numeric import load, narrow, number, pointer, widen

TOGETHER = tl.constexpr(8)  # rows of the product that a program makes of one reading of `down`


@triton.jit
def _rows(
    row, rank, columns, first, top, left, n, FULL: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr,
    BASE: tl.constexpr, OUT: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """TILE columns of ROWS rows of the product. FULL: all are there and wanted."""
    columns = tl.cast(columns, tl.int64)
    if EVEN:
        columns, n = tl.multiple_of(columns, 16), tl.multiple_of(n, 16)
    here, end = tl.arange(0, TILE), columns - left
    up = pointer(row + 5, WORKING, False) + top * rank
    down = pointer(row + 6, WORKING, ALIGNED) + left
    line, deltas = load(down, here, end, FULL, WORKING), ()
    for i in tl.static_range(ROWS):
        deltas = deltas + (tl.load(up + i * rank) * line,)
    for j in range(1, rank):
        line, sums = load(down + j * columns, here, end, FULL, WORKING), ()
        for i in tl.static_range(ROWS):
            sums = sums + (deltas[i] + tl.load(up + i * rank + j) * line,)
        deltas = sums
    base, out, scale = pointer(row + 3, BASE, ALIGNED), pointer(row + 4, OUT, ALIGNED), number(row + 7, WORKING)
    for i in tl.static_range(ROWS):
        at = (top + i) * columns + left - first
        if EVEN:
            at = tl.multiple_of(at, 16)
        if FULL:
            theta = widen(tl.load(base + at + here), WORKING)
            tl.store(out + at + here, narrow(theta + scale * deltas[i], OUT))
        else:
            wanted = (here >= -at) & (here < tl.minimum(end, n - at))
            theta = widen(tl.load(base + at + here, mask=wanted, other=0.0), WORKING)
            tl.store(out + at + here, narrow(theta + scale * deltas[i], OUT), mask=wanted)


@triton.jit(do_not_specialize=["width", "rank", "columns", "first"])
def low_rank_tile(
    table, owners, width, rank, columns, first, EVEN: tl.constexpr, BASE: tl.constexpr, OUT: tl.constexpr,
    ALIGNED: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """Row: base, out, up, down, scale. first: the first element's column in row 0 of the product.

    EVEN: columns, first and elements are multiples of 16. Programs that follow each other have the same columns, so
    that what they read of `down` stays near.
    """
    n = tl.load(table)
    rows = (first + n - 1) // columns + 1
    down = tl.cdiv(rows, TOGETHER)
    top, left = tl.program_id(0) % down * TOGETHER, tl.program_id(0) // down * TILE
    inside = (top * columns >= first) & ((top + TOGETHER) * columns <= first + n)
    if inside & (left + TILE <= columns):
        _rows(table, rank, columns, first, top, left, n, True, EVEN, TOGETHER, BASE, OUT, ALIGNED, TILE, WORKING)
    else:
        for own in range(top, tl.minimum(top + TOGETHER, rows)):
            _rows(table, rank, columns, first, own, left, n, False, EVEN, 1, BASE, OUT, ALIGNED, TILE, WORKING)


def low_rank(base: Tensor, up: Tensor, down: Tensor, scale: float, column: int, out: Tensor) -> None:
    if not base.numel():
        return
    rank, columns = down.shape
    launch = Launch("low_rank", [Row(base.numel(), (base, out, up, down, scale))], (base, out, up, down))
    launch.programs = triton.cdiv(len(up), TOGETHER.value) * triton.cdiv(columns, launch.constants["TILE"])
    even = columns % 16 == column % 16 == base.numel() % 16 == 0
    launch(
        low_rank_tile, rank, columns, column, EVEN=even, BASE=base.dtype, OUT=out.dtype, WORKING=up.dtype
    )  # fmt: skip
