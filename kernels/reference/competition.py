"""What elements score in PCB-Merging (Du et al. 2024, Section 3.2): shared by the ops that find and use it."""

from __future__ import annotations

import torch
from torch import Tensor

from .exponential import exp, expm1


def clamped(tau: Tensor, least: float, most: float) -> tuple[Tensor, Tensor]:
    """τ with its magnitudes clamped, but 0 staying 0 and NaN becoming it; and these magnitudes."""
    size = tau.abs().clamp(least, most)
    return torch.where(tau > 0, size, torch.where(tau < 0, -size, 0)), size


def score(tau: Tensor, total: Tensor, count: int, least: float, most: float) -> tuple[Tensor, Tensor]:
    """τ clamped, and exp(K · n²) · tanh(τ · Σ_j τ_j), 0 where that is not positive; n brings magnitudes to 0 … 1.

    tau: τ_k; total: Σ_j τ_j of `count` models.
    """
    tau, size = clamped(tau, least, most)
    place = between(size, least, most)
    agrees = tau * total
    enough = 20.0 if tau.dtype == torch.float32 else 40.0  # the hyperbolic tangent of half of it rounds to 1
    t = expm1((agrees + agrees).clamp(0, enough))
    return tau, torch.where(agrees > 0, exp(place * place * count) * (t / (t + 2)), 0)


def between(x: Tensor, low: float, high: float) -> Tensor:
    """0 at low, 1 at high, and everywhere 0 where these are one."""
    first = number(low, x)
    slope = 1 / (number(high, x) - first)
    return (x - first) * torch.where((slope > 0) & slope.isfinite(), slope, 0).item()


def number(x: float, like: Tensor) -> Tensor:
    return torch.tensor(x, dtype=like.dtype)
