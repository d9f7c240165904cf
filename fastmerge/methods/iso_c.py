"""Iso-C: the summed task vectors of each matrix, with singular values that are all the same (Marczak et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ._singular import SingularMethod, leading

if TYPE_CHECKING:
    from torch import Tensor


class IsoC(SingularMethod):
    """base + scale · σ̄ U Vᵀ of each matrix, U Σ Vᵀ being Σ τ_k, and σ̄ the mean of its singular values.

    Singular values that are zero, as adapters of low rank have most, stay zero and do not count; the released code
    gives them directions by chance. Other tensors get scale · the mean of the task vectors.
    """

    name = "iso_c"
    source = "Marczak et al. 2025, arXiv 2502.04959, Algorithm 1"

    def merge_matrix(self, base: Tensor, models: Sequence[Tensor], shape: tuple[int, int]) -> Tensor:
        from .. import ops

        u, sigma, v = leading(ops.delta_sum(base, models).view(shape), min(shape))
        return (u * sigma.mean().nan_to_num(0.0)) @ v
