"""Per-model statistics of task vectors: magnitudes, means, energies, peaks, and non-finite elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .numeric import add_block_sums, task_vectors


def moments(base: Tensor, models: Sequence[Tensor], sums: Tensor, nonfinite: Tensor) -> None:
    """Add Σ|τ_k|, Σ τ_k, Σ τ_k² to sums[0..2], raise sums[3] to max|τ_k|, count non-finite τ_k.

    base, models: [N]; sums: float64 [4, K]; nonfinite: int64 [K]. NaN never becomes the maximum.
    """
    for k, tau in enumerate(task_vectors(base, models)):
        wide = tau.to(torch.float64)
        add_block_sums(sums[0, k], wide.abs())
        add_block_sums(sums[1, k], wide)
        add_block_sums(sums[2, k], wide * wide)
        if tau.numel():
            peak = torch.where(wide.isnan(), 0, wide.abs()).max()
            sums[3, k] = torch.maximum(sums[3, k], peak)
        nonfinite[k] += tau.numel() - tau.isfinite().sum()
