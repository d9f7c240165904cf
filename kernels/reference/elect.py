"""EMR-Merging's elect (Huang et al. 2024, Section 3.2), with every task's mask and the sums of its rescaler."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .numeric import add_block_sums, narrow, task_vectors
from .pack_bits import pack_bits


def elect(base: Tensor, models: Sequence[Tensor], unified: Tensor, masks: Tensor, sums: Tensor) -> None:
    """unified = s · max_k { |τ_k| : sign(τ_k) = s }, s the sign of Σ τ_k (zero counts as −); mask_k = sign(τ_k) = s.

    base, models, unified: [N]; masks: uint8 [K, ceil(N/8)]; sums: float64 [2, K], to which Σ|τ_k| and
    Σ mask_k · |unified| (before rounding) are added.
    """
    taus = task_vectors(base, models)
    total = taus[0]
    for tau in taus[1:]:
        total = total + tau
    up = total > 0
    magnitude = torch.zeros_like(total)
    for tau in taus:
        agreeing = torch.where(up, tau, -tau)
        magnitude = torch.where(agreeing > magnitude, agreeing, magnitude)
    unified.copy_(narrow(torch.where(up, magnitude, 0 - magnitude), unified.dtype))
    for k, tau in enumerate(taus):
        mask = torch.where(up, tau > 0, tau < 0)
        pack_bits(mask, masks[k])
        add_block_sums(sums[0, k], tau.abs())
        add_block_sums(sums[1, k], torch.where(mask, magnitude, 0))
