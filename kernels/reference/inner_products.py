"""The inner products that a Frank-Wolfe step needs: ⟨g, θ_k⟩, ‖θ_k‖² and ‖g‖², from one reading."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .numeric import add_block_sums


def inner_products(g: Tensor, models: Sequence[Tensor], sums: Tensor) -> None:
    """Add to sums (float64 [2K + 1]): K inner products, K squared norms, then ‖g‖². g, models: [N].

    Products are formed in float64, where they are exact for inputs of at most 32 bits.
    """
    gradient = g.to(torch.float64)
    for k, model in enumerate(models):
        wide = model.to(torch.float64)
        add_block_sums(sums[k], gradient * wide)
        add_block_sums(sums[len(models) + k], wide * wide)
    add_block_sums(sums[2 * len(models)], gradient * gradient)
