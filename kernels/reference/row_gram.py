"""Inner products of the rows of task vectors with each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .numeric import task_vectors


def row_gram(base: Tensor | None, models: Sequence[Tensor], columns: int, products: Tensor) -> None:
    """products[j, k] = ⟨τ_j, τ_k⟩ of every row, without a base ⟨θ_j, θ_k⟩. products: float64 [K, K, rows].

    base, models: [N], rows of `columns` elements. Products are formed in float64, of vectors in the working type.
    """
    rows = torch.stack([tau.to(torch.float64).view(-1, columns) for tau in task_vectors(base, models)], 1)
    products.copy_((rows @ rows.mT).permute(1, 2, 0))
