"""Singular vectors of task matrices: the leading ones, and what is nearest to them and orthogonal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

HELD = 10  # copies of a matrix that its decompositions take, about


def leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U [H, r], σ [r] and Vᵀ [r, W] of the `rank` largest singular values, as far as they are not zero.

    Of a matrix that is not finite they are NaN.
    """
    import torch

    if not bool(matrix.isfinite().all()):
        h, w = matrix.shape
        return matrix.new_full((h, 1), torch.nan), matrix.new_zeros(1), matrix.new_zeros(1, w)
    u, sigma, v = torch.linalg.svd(matrix, full_matrices=False)
    kept = min(rank, _nonzero(sigma, max(matrix.shape)))
    return u[:, :kept].contiguous(), sigma[:kept].clone(), v[:kept].contiguous()


def orthogonal(columns: Tensor) -> Tensor:
    """The polar factor: orthonormal columns nearest to these, as far as they are linearly independent."""
    import torch

    if not columns.numel() or not bool(columns.isfinite().all()):
        return columns
    u, sigma, v = torch.linalg.svd(columns, full_matrices=False)
    independent = _nonzero(sigma, max(columns.shape))
    polar: Tensor = u[:, :independent] @ v[:independent]
    return polar


def _nonzero(sigma: Tensor, size: int) -> int:
    """How many singular values of a matrix, the longer side of which is `size`, are more than rounding."""
    import torch

    return int((sigma > torch.finfo(sigma.dtype).eps * size * sigma[:1]).sum())


def merge_matrices(taus: Iterable[Tensor], rank: int) -> Tensor:
    """U Σ Vᵀ of whitened task singular vectors (Gargiulo et al. 2025, Algorithm 1). taus: matrices [H, W]."""
    import torch

    parts = [leading(tau, rank) for tau in taus]
    left = orthogonal(torch.cat([u for u, _, _ in parts], dim=1))
    right = orthogonal(torch.cat([v for _, _, v in parts]).T)
    return (left * torch.cat([sigma for _, sigma, _ in parts])) @ right.T
