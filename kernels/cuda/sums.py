"""Deterministic sums: tiles add up to blocks of 65 536 elements, blocks to sums in their order."""

from __future__ import annotations

import triton
import triton.language as tl

from .numeric import BLOCK, INTERPRETED


@triton.jit
def zeros(COUNT: tl.constexpr, TYPE: tl.constexpr, TILE: tl.constexpr, LANES: tl.constexpr):
    """COUNT vectors for sums by lanes, of nothing yet."""
    vectors = ()
    for _ in tl.static_range(COUNT):
        vectors = vectors + (tl.zeros([TILE // LANES], TYPE),)
    return vectors


@triton.jit
def by_lanes(x, ALIGNED: tl.constexpr, LANES: tl.constexpr):
    """A tile as [TILE / LANES, LANES], the elements of a row being one thread's: to reduce rows shuffles nothing.

    A thread has LANES adjacent elements where they are loaded at once, else every (TILE / LANES)-th: terms add up in an
    order that depends on whether addresses are aligned.
    """
    if ALIGNED:
        return tl.reshape(x, (x.shape[0] // LANES, LANES))
    return tl.trans(tl.reshape(x, (LANES, x.shape[0] // LANES)))


@triton.jit
def put_sum(slot, vector):
    tl.store(slot, tl.sum(vector, 0))


@triton.jit
def whole_tiles(start, n, TILE: tl.constexpr, TILES: tl.constexpr):
    """Where the whole tiles of a program's span end, and where its elements do; `start` if there are none."""
    stop = tl.maximum(tl.minimum(start + TILE * TILES, n), start)
    return start + (stop - start) // TILE * TILE, stop


# Blocks whose sums are read before the first is added: of loads one after the other each would be waited for.
AT_ONCE = tl.constexpr(1 if INTERPRETED.value else 16)


@triton.jit(do_not_specialize=["programs", "width", "peaks"])
def sum_spans(partial, blocks, programs, width, peaks, SPANS: tl.constexpr, COLUMNS: tl.constexpr):
    """blocks[group, i] = Σ of the SPANS rows of partial that block i has; from column `peaks` on, their maximum."""
    block = tl.program_id(0).to(tl.int64)
    rows = block * SPANS + tl.arange(0, SPANS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = (rows[:, None] < programs) & (columns[None, :] < width)
    terms = tl.load(partial + rows[:, None] * width + columns[None, :], mask=there, other=0.0)
    found = tl.where(columns < peaks, tl.sum(terms, 0), tl.max(terms, 0))
    place = (tl.program_id(1).to(tl.int64) * tl.num_programs(0) + block) * COLUMNS
    tl.store(blocks + place + tl.arange(0, COLUMNS), found)


@triton.jit
def _terms(source, left, COLUMNS: tl.constexpr):
    """The next blocks' sums, zeros after the last."""
    terms = ()
    for i in tl.static_range(AT_ONCE):
        there = tl.full([COLUMNS], i, tl.int32) < left
        terms = terms + (tl.load(source + i * COLUMNS, mask=there, other=0.0),)
    return terms


@triton.jit
def _add(total, peak, terms, PEAKS: tl.constexpr):
    for i in tl.static_range(AT_ONCE):
        total += terms[i]
        if PEAKS:
            peak = tl.where(terms[i] > peak, terms[i], peak)
    return total, peak


@triton.jit(do_not_specialize=["row_width", "count", "width", "peaks"])
def add_blocks(table, row_width, blocks, count, width, peaks, PEAKS: tl.constexpr, COLUMNS: tl.constexpr):
    """A row's sums += those of its first block, then of its second, …: so chunks add up to the whole. blocks: [groups,
    count, COLUMNS]; PEAKS: whether there are columns from `peaks` on."""
    row = table + tl.program_id(0).to(tl.int64) * row_width
    left = ((tl.load(row) + BLOCK - 1) // BLOCK).to(tl.int32)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.load(row + 2).to(tl.pointer_type(tl.float64))
    total = tl.load(sums + columns, mask=columns < width, other=0.0)
    peak = total
    first = tl.program_id(1).to(tl.int64) * count + tl.load(row + 1)
    source = blocks + first * COLUMNS + tl.arange(0, COLUMNS)
    terms = _terms(source, left, COLUMNS)
    for _ in range(0, left, 2 * AT_ONCE):  # blocks are on their way while those before are added
        following = _terms(source + AT_ONCE * COLUMNS, left - AT_ONCE, COLUMNS)
        total, peak = _add(total, peak, terms, PEAKS)
        source += 2 * AT_ONCE * COLUMNS
        left -= 2 * AT_ONCE
        terms = _terms(source, left, COLUMNS)
        total, peak = _add(total, peak, following, PEAKS)
    if PEAKS:
        total = tl.where(columns < peaks, total, peak)
    tl.store(sums + columns, total, mask=columns < width)
