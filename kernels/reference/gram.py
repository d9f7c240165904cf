"""Inner products of task vectors with each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .numeric import add_block_sums, task_vectors


def gram(base: Tensor | None, models: Sequence[Tensor], sums: Tensor) -> None:
    """Add ⟨τ_j, τ_k⟩ to sums (float64 [K, K]), without a base ⟨θ_j, θ_k⟩. base, models: [N].

    Products are formed in float64, of vectors in the working type.
    """
    wide = [tau.to(torch.float64) for tau in task_vectors(base, models)]
    for row, left in zip(sums, wide, strict=True):
        for total, right in zip(row, wide, strict=True):
            add_block_sums(total, left * right)
