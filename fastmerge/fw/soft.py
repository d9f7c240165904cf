"""The inner problem of soft Frank-Wolfe: how much of each of the k best vertices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .simplex import Simplex, project

SUFFICIENT = 1e-4  # of the fall that the slope promises
TRIALS = 10
LONGEST = 1e10
NEGLIGIBLE = 1e-13  # of the value, as a fall


def blend(coefficients: Tensor, vertices: Tensor, lam: Tensor) -> Tensor:
    """Coefficients [R, K] of θ_t + Σ_j λ_j (s_j − θ_t) (Eq. 9); vertices, λ: [R, k]. Rows stay ≥ 0 and sum to one."""
    rest = (1 - lam.sum(1, keepdim=True)).clamp(min=0)
    moved = (rest * coefficients).scatter_add(1, vertices, lam)
    return moved / moved.sum(1, keepdim=True)


def slopes(dots: Tensor, coefficients: Tensor, vertices: Tensor, shared: bool) -> Tensor:
    """∂ℓ/∂λ_j = ⟨g, s_j − θ_t⟩ of dots [R, K]: [R, k], or [1, k] where all rows share their λ."""
    found = dots.gather(1, vertices) - (coefficients * dots).sum(1, keepdim=True)
    return found.sum(0, keepdim=True) if shared else found


def descend(
    value: Callable[[Tensor], float],
    slope: Callable[[], Tensor],
    start: tuple[Tensor, float, Tensor],
    simplex: Simplex,
    steps: int,
) -> tuple[Tensor, float]:
    """λ that minimises a function on the simplex, and its value, by projected gradient descent.

    `value` is the function, `slope` its gradient where `value` was last asked for; `start`: λ, value and gradient
    there. Steps have Barzilai and Borwein's length and are shortened until the value falls (spectral projected
    gradient, Birgin, Martínez & Raydan 2000), so that no step makes it worse.
    """
    lam, least, gradient = start
    length = 1 / max(float(gradient.abs().max()), 1 / LONGEST)
    for _ in range(steps):
        direction = project(lam - length * gradient, simplex) - lam
        promised = float((gradient * direction).sum())
        if not promised < -NEGLIGIBLE * abs(least):
            break
        found = _shortened(value, lam, direction, least, promised)
        if found is None:
            break
        trial, least = found
        now = slope()
        moved, change = trial - lam, now - gradient
        curvature = float((moved * change).sum())
        length = min(float((moved * moved).sum()) / curvature, LONGEST) if curvature > 0 else 4 * length
        lam, gradient = trial, now
    return lam, least


def _shortened(
    value: Callable[[Tensor], float], lam: Tensor, direction: Tensor, before: float, promised: float
) -> tuple[Tensor, float] | None:
    """A point along a direction where the value has fallen enough, or None."""
    share = 1.0
    for _ in range(TRIALS):
        trial = lam + share * direction
        now = value(trial)
        if now <= before + SUFFICIENT * share * promised:
            return trial, now
        excess = now - before - share * promised
        vertex = -promised * share * share / (2 * excess) if excess < torch.inf else 0.0
        share = min(max(vertex, share / 10), share / 2)
    return None
