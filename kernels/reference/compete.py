"""Scores of one model's elements in PCB-Merging (Du et al. 2024, Section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .competition import score
from .numeric import task_vectors, total


def compete(base: Tensor, models: Sequence[Tensor], own: int, least: float, most: float, out: Tensor) -> None:
    """out = exp(K · n²) · tanh(τ · Σ_j τ_j), 0 where that is not positive, of the τ of model number `own`.

    base, models: [N]; out: [N], the working type. |τ| is clamped to least … most; n is 0 for the least, 1 for the most.
    """
    taus = task_vectors(base, models)
    out.copy_(score(taus[own], total(taus), len(taus), least, most)[1])
