"""How much of each task vector a selection keeps: what a rescaling to the same L1 norm needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .kept import Kept, kept_elements
from .numeric import add_block_sums, task_vectors


def kept_sums(base: Tensor, models: Sequence[Tensor], kept: Kept, offset: int, sums: Tensor) -> None:
    """Add Σ|τ_k|, and Σ|τ_k| over the elements that are kept, to sums (float64 [2, K]). base, models: [N]."""
    for k, tau in enumerate(task_vectors(base, models)):
        add_block_sums(sums[0, k], tau.abs())
        add_block_sums(sums[1, k], torch.where(kept_elements(k, tau, kept, offset), tau.abs(), 0))
