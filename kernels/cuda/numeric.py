"""Arithmetic common to the kernels: exact widening, one rounding, packed bits, deterministic sums.

Triton's interpreter truncates where it should round to bfloat16, and loses bfloat16's subnormals; there the conversions
are done on the bits.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")


@triton.jit
def widen(x, WORKING: tl.constexpr):
    """To the working type, exactly."""
    if INTERPRETED and x.dtype == tl.bfloat16:
        bits = x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return bits.to(tl.float32, bitcast=True).to(WORKING)
    return x.to(WORKING)


@triton.jit
def round_to_odd(x):
    """float64 to float32 so that rounding once more, to 16 bits, gives what one rounding would have given."""
    near = x.to(tl.float32)
    exact = near.to(tl.float64)
    bits = near.to(tl.int32, bitcast=True)
    cut = (exact != x) & (x == x)
    odd = (bits - (tl.abs(exact) > tl.abs(x)).to(tl.int32)) | 1
    return tl.where(cut, odd, bits).to(tl.float32, bitcast=True)


@triton.jit
def narrow(x, TO: tl.constexpr):
    """From the working type, rounded once to nearest even."""
    if x.dtype == tl.float64 and TO.primitive_bitwidth == 16:
        x = round_to_odd(x)
    if INTERPRETED and TO == tl.bfloat16:
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(x == x, rounded, 0x7FC0)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(TO)


@triton.jit
def load(pointer, offsets, n, FULL: tl.constexpr, WORKING: tl.constexpr):
    """Elements in the working type, zeros beyond n. A full tile has no mask, so that its loads are whole."""
    if FULL:
        return widen(tl.load(pointer + offsets), WORKING)
    return widen(tl.load(pointer + offsets, mask=offsets < n, other=0.0), WORKING)


@triton.jit
def store(pointer, offsets, x, n, FULL: tl.constexpr):
    """Elements rounded to what the pointer points to."""
    if FULL:
        tl.store(pointer + offsets, narrow(x, pointer.dtype.element_ty))
    else:
        tl.store(pointer + offsets, narrow(x, pointer.dtype.element_ty), mask=offsets < n)


@triton.jit
def store_bits(pointer, start, mask, words, FULL: tl.constexpr, TILE: tl.constexpr):
    """A tile's mask, packed: eight lanes a byte, all of one thread, so that nothing is shuffled."""
    bits = tl.reshape(mask.to(tl.int32), (TILE // 8, 8))
    packed = tl.sum(bits << tl.arange(0, 8)[None, :], 1).to(tl.uint8)
    places = start // 8 + tl.arange(0, TILE // 8)
    if FULL:
        tl.store(pointer + places, packed)
    else:
        tl.store(pointer + places, packed, mask=places < words)


@triton.jit
def _sum_block(tiles, blocks, count, width, TILES: tl.constexpr, WIDTH: tl.constexpr):
    """blocks[i] = Σ of the TILES tile sums of block i, each of `width` numbers."""
    block = tl.program_id(0).to(tl.int64)
    rows = block * TILES + tl.arange(0, TILES).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    places = rows[:, None] * width + columns[None, :]
    terms = tl.load(tiles + places, mask=(rows[:, None] < count) & (columns[None, :] < width), other=0.0)
    tl.store(blocks + block * width + columns, tl.sum(terms, 0), mask=columns < width)


@triton.jit
def _add_blocks(blocks, sums, count, width, WIDTH: tl.constexpr):
    """sums += blocks[0], then blocks[1], …: the order that makes chunks add up to the whole."""
    columns = tl.arange(0, WIDTH)
    total = tl.load(sums + columns, mask=columns < width, other=0.0)
    for _ in range(count):
        total += tl.load(blocks + columns, mask=columns < width, other=0.0)
        blocks += width
    tl.store(sums + columns, total, mask=columns < width)


def add_tile_sums(tiles, sums, tiles_a_block: int) -> None:
    """Add tile sums (float64 [tiles, width]) to sums (float64, width elements), block by block."""
    count, width = tiles.shape
    block_count = triton.cdiv(count, tiles_a_block)
    blocks = tiles.new_empty(block_count, width)
    padded = triton.next_power_of_2(width)
    _sum_block[(block_count,)](tiles, blocks, count, width, TILES=tiles_a_block, WIDTH=padded)
    _add_blocks[(1,)](blocks, sums, block_count, width, WIDTH=padded)
