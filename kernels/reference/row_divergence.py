"""How much what a row says as a distribution has changed: what Arcee Fusion judges changes by."""

from __future__ import annotations

import torch
from torch import Tensor


def row_divergence(base: Tensor, model: Tensor, columns: int, epsilon: float, divergences: Tensor) -> None:
    """Σ p log(p / q) of every row: p the softmax of the model's row plus epsilon, q that of base's.

    base, model: [N], rows of `columns` elements; divergences: float64 [rows]. All is in float64. As p and q have one
    sum, p − q is left off: of a row that hardly changes, terms are then as small as what they add up to.
    """
    p, q = (x.to(torch.float64).view(-1, columns).softmax(1) + epsilon for x in (model, base))
    divergences.copy_((p * (p / q).log() - (p - q)).sum(1).clamp(min=0))
