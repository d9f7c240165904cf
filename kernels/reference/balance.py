"""PCB-Merging's weighted mean of task vectors (Du et al. 2024, Section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .competition import between, number, score
from .numeric import narrow, task_vectors, total

Bounds = tuple[float, float, float, float]  # least, most, low, high


def balance(base: Tensor, models: Sequence[Tensor], bounds: Sequence[Bounds], scale: float, out: Tensor) -> int:
    """out = base + scale · Σ_k s_k τ_k / Σ_k s_k, s_k from 0 to 1 as the score of compete goes from low to high.

    base, models, out: [N]. |τ_k| is clamped to least … most. Without any share, out is base. Returns the number
    of elements that are not finite in out or in Σ_k τ_k.
    """
    taus = task_vectors(base, models)
    whole = total(taus)
    weight = delta = torch.zeros_like(whole)
    for tau, (least, most, low, high) in zip(taus, bounds, strict=True):
        own, scored = score(tau, whole, len(taus), least, most)
        share = between(scored, low, high).clamp(min=0)
        delta, weight = delta + share * own, weight + share
    delta = torch.where(weight > 0, delta / weight, 0)
    if scale != 1:
        delta = number(scale, delta) * delta
    out.copy_(narrow(base.to(delta.dtype) + delta, out.dtype))
    return int((~(out.isfinite() & whole.isfinite())).sum())
