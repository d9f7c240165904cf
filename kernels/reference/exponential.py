"""Exponentials by additions and multiplications alone, so that every backend has the same bits, unlike of torch.exp."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG2_E, LN2_HIGH, LN2_LOW = 1.44269504088896340736, 0.693145751953125, 1.42860682030941723212e-6
FORMATS = {torch.float32: (torch.int32, 127, 23, 7), torch.float64: (torch.int64, 1023, 52, 13)}


def exp(x: Tensor) -> Tensor:
    """eˣ, for |x| up to 80. x: float32 or float64."""
    power, rest = _powers(x)
    return power * rest + power


def expm1(x: Tensor) -> Tensor:
    """eˣ − 1, for |x| up to 80. x: float32 or float64."""
    power, rest = _powers(x)
    return power * rest + (power - 1)


def _powers(x: Tensor) -> tuple[Tensor, Tensor]:
    """A whole power of two, and the rest: eˣ = power · (1 + rest). The rest is Taylor's series, of |r| ≤ ½ ln 2."""
    word, bias, mantissa, degree = FORMATS[x.dtype]
    m = (x * LOG2_E).round()
    r = (x - m * LN2_HIGH) - m * LN2_LOW
    series = torch.full_like(x, 1 / math.factorial(degree))
    for j in range(degree - 1, 1, -1):
        series = series * r + 1 / math.factorial(j)
    return (m.to(word) + bias << mantissa).view(x.dtype), r * r * series + r
