"""Deterministic sums: tiles add up to blocks of 65 536 elements, blocks to sums in their order."""

from __future__ import annotations

import triton
import triton.language as tl

from .numeric import BLOCK, INTERPRETED

# Blocks whose sums are read before the first is added: of loads one after the other each would be waited for.
AT_ONCE = tl.constexpr(2 if INTERPRETED.value else 32)


@triton.jit(do_not_specialize=["programs", "width", "peaks"])
def sum_tiles(partial, blocks, programs, width, peaks, TILES: tl.constexpr, COLUMNS: tl.constexpr):
    """blocks[i] = Σ of the TILES rows of partial that block i has; from column `peaks` on, their maximum."""
    block = tl.program_id(0).to(tl.int64)
    rows = block * TILES + tl.arange(0, TILES)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = (rows[:, None] < programs) & (columns[None, :] < width)
    terms = tl.load(partial + rows[:, None] * width + columns[None, :], mask=there, other=0.0)
    found = tl.where(columns < peaks, tl.sum(terms, 0), tl.max(terms, 0))
    tl.store(blocks + block * width + columns, found, mask=columns < width)


@triton.jit(do_not_specialize=["row_width", "width", "peaks"])
def add_blocks(table, row_width, blocks, width, peaks, COLUMNS: tl.constexpr):
    """A row's sums += those of its first block, then of its second, …: so chunks add up to the whole."""
    row = table + tl.program_id(0).to(tl.int64) * row_width
    count = (tl.load(row) + BLOCK - 1) // BLOCK
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = columns < width
    sums = tl.load(row + 2).to(tl.pointer_type(tl.float64))
    total = tl.load(sums + columns, mask=there, other=0.0)
    source = blocks + tl.load(row + 1) * width
    for start in range(0, count, AT_ONCE):
        terms = ()
        for i in tl.static_range(AT_ONCE):
            places = (start + i) * width + columns
            terms = terms + (tl.load(source + places, mask=there & (places < count * width), other=0.0),)
        for i in tl.static_range(AT_ONCE):
            total = tl.where(columns < peaks, total + terms[i], tl.where(terms[i] > total, terms[i], total))
    tl.store(sums + columns, total, mask=there)
