"""What the kernels have in common: their place in the table, exact widening, one rounding, packed bits.

Triton's interpreter truncates where it should round to bfloat16, and loses bfloat16's subnormals; there the conversions
are done on the bits.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

BLOCK = tl.constexpr(65_536)  # elements whose float64 sum is formed on its own
HEAD = tl.constexpr(8)  # numbers of a row of the table before the models' addresses
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")


@triton.jit
def place(table, owners, width, SINGLE: tl.constexpr, TILE: tl.constexpr):
    """This program's row of the table, its first element, and how many elements there are."""
    program = tl.program_id(0).to(tl.int64)
    if SINGLE:
        return table, program * TILE, tl.load(table)
    tiles: tl.constexpr = BLOCK // TILE
    row = table + tl.load(owners + program // tiles) * width
    return row, (program - tl.load(row + 1) * tiles) * TILE, tl.load(row)


@triton.jit
def pointer(slot, ELEMENT: tl.constexpr, ALIGNED: tl.constexpr):
    """What a slot of the table has the address of; ALIGNED: it is a multiple of 16 bytes."""
    address = tl.load(slot).to(tl.pointer_type(ELEMENT))
    if ALIGNED:
        address = tl.multiple_of(address, 16)
    return address


@triton.jit
def number(slot, WORKING: tl.constexpr):
    """The float in a slot of the table, in the working type."""
    return tl.load(slot).to(tl.float64, bitcast=True).to(WORKING)


@triton.jit
def task_vector(
    row, k, theta, offsets, n, FULL: tl.constexpr, ELEMENT: tl.constexpr, ALIGNED: tl.constexpr, WORKING: tl.constexpr
):
    """τ_k = θ_k − θ_pre."""
    return load(pointer(row + HEAD + k, ELEMENT, ALIGNED), offsets, n, FULL, WORKING) - theta


@triton.jit
def task_vectors(
    row, models, theta, offsets, n, FULL: tl.constexpr, K: tl.constexpr, MODELS: tl.constexpr, ALIGNED: tl.constexpr,
    WORKING: tl.constexpr,
):  # fmt: skip
    """τ_0 … τ_{K−1}, which stay in registers, and their sum. Where K is 0, the sum alone of any number of models."""
    taus = ()
    total = task_vector(row, 0, theta, offsets, n, FULL, MODELS[0], ALIGNED, WORKING)
    if K > 0:
        taus = taus + (total,)
        for k in tl.static_range(1, K):
            taus = taus + (task_vector(row, k, theta, offsets, n, FULL, MODELS[k], ALIGNED, WORKING),)
        for k in tl.static_range(1, K):
            total = total + taus[k]
    else:
        for k in range(1, models):
            total = total + task_vector(row, k, theta, offsets, n, FULL, MODELS[0], ALIGNED, WORKING)
    return taus, total


@triton.jit
def divide(a, b, WORKING: tl.constexpr):
    """Correctly rounded: of float32, `/` is an approximation."""
    if WORKING == tl.float32:
        return tl.div_rn(a, b)
    return a / b


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
def is_finite(x, TO: tl.constexpr):
    """Whether a number of the working type is finite once it is rounded to TO: it is below the middle of the largest
    finite number and the next power of two, which is rounded up. A NaN is not."""
    if TO == tl.float16:
        return tl.abs(x) < 65520.0
    if TO == tl.bfloat16:
        return tl.abs(x) < 3.39617752923046e38  # 2^128 − 2^119
    if TO == tl.float32 and x.dtype == tl.float64:
        return tl.abs(x) < 3.4028235677973366e38  # 2^128 − 2^103
    return tl.abs(x) < float("inf")


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
def load_bits(pointer, start, n, FULL: tl.constexpr, TILE: tl.constexpr):
    """A tile of packed bits, unpacked: int32 [TILE]."""
    places = start // 8 + tl.arange(0, TILE // 8)
    packed = tl.load(pointer + places) if FULL else tl.load(pointer + places, mask=places < (n + 7) // 8, other=0)
    bits = (packed.to(tl.int32)[:, None] >> tl.arange(0, 8)[None, :]) & 1
    return tl.reshape(bits, (TILE,))


@triton.jit
def store_bits(pointer, start, mask, n, FULL: tl.constexpr, TILE: tl.constexpr):
    """A tile's mask, packed: eight lanes a byte, all of one thread, so that nothing is shuffled."""
    bits = tl.reshape(mask.to(tl.int32), (TILE // 8, 8))
    packed = tl.sum(bits << tl.arange(0, 8)[None, :], 1).to(tl.uint8)
    places = start // 8 + tl.arange(0, TILE // 8)
    if FULL:
        tl.store(pointer + places, packed)
    else:
        tl.store(pointer + places, packed, mask=places < (n + 7) // 8)
