"""What elements score in PCB-Merging (Du et al. 2024, Section 3.2), by the formulas of reference/competition.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .exponential import exp, expm1
from .numeric import divide


@triton.jit
def slope(low, high, WORKING: tl.constexpr):
    """What brings low … high to 0 … 1; 0 where nothing does."""
    found = divide(tl.full([], 1.0, WORKING), high - low, WORKING)
    return tl.where((found > 0) & (found < float("inf")), found, 0.0)


@triton.jit
def score(tau, total, models, least, most, by_size, WORKING: tl.constexpr):
    """τ with its magnitudes clamped, 0 staying 0 and NaN becoming it; and exp(K · n²) · tanh(τ · Σ_j τ_j), 0 where that
    is not positive. by_size: the slope of least … most."""
    ENOUGH: tl.constexpr = 20.0 if WORKING == tl.float32 else 40.0  # noqa: N806 - tanh of half of it rounds to 1
    size = tl.minimum(tl.maximum(tl.abs(tau), least), most)
    tau = tl.where(tau > 0, size, tl.where(tau < 0, -size, 0.0))
    place = (size - least) * by_size
    agrees = tau * total
    # Not of 0: what is no normal number is divided by a subroutine, and the whole warp waits.
    t = expm1(tl.where(agrees > 0, tl.minimum(agrees + agrees, ENOUGH), 1.0), WORKING)
    scored = exp(place * place * models.to(WORKING), WORKING) * divide(t, t + 2, WORKING)
    return tau, tl.where(agrees > 0, scored, 0.0)
