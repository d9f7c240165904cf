"""Exponentials by additions and multiplications alone, whose bits are those of reference/exponential.py."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from ..reference import exponential

LOG2_E = tl.constexpr(exponential.LOG2_E)
LN2_HIGH, LN2_LOW = tl.constexpr(exponential.LN2_HIGH), tl.constexpr(exponential.LN2_LOW)
INVERSES = tl.constexpr(tuple(1 / math.factorial(j) for j in range(14)))  # 1 / j!


@triton.jit
def powers(x, WORKING: tl.constexpr):
    """A whole power of two, and the rest: eˣ = power · (1 + rest), for |x| up to 80, of float64 up to 700."""
    # What is added to 1.5 · 2^p, p being the bits of a fraction, is rounded to a whole number, of two as near the even
    # one; it then stands in the lowest bits.
    SINGLE: tl.constexpr = WORKING == tl.float32  # noqa: N806
    ROUNDING: tl.constexpr = 12582912.0 if SINGLE else 6755399441055744.0  # noqa: N806
    DEGREE: tl.constexpr = 7 if SINGLE else 13  # noqa: N806
    shifted = x * LOG2_E + ROUNDING
    m = shifted - ROUNDING
    r = (x - m * LN2_HIGH) - m * LN2_LOW
    series = tl.full(x.shape, INVERSES[DEGREE], WORKING)
    for i in tl.static_range(2, DEGREE):
        series = series * r + INVERSES[DEGREE + 1 - i]
    if SINGLE:
        power = ((shifted.to(tl.uint32, bitcast=True) + 127) << 23).to(tl.float32, bitcast=True)
    else:
        power = ((shifted.to(tl.uint64, bitcast=True) + 1023) << 52).to(tl.float64, bitcast=True)
    return power, r * r * series + r


@triton.jit
def exp(x, WORKING: tl.constexpr):
    """eˣ, for |x| up to 80, of float64 up to 700."""
    power, rest = powers(x, WORKING)
    return power * rest + power


@triton.jit
def expm1(x, WORKING: tl.constexpr):
    """eˣ − 1, for |x| up to 80."""
    power, rest = powers(x, WORKING)
    return power * rest + (power - 1)
