"""Euclidean projections onto the sets that coefficients live in, row by row."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Simplex = Literal["anchored", "paper"]


def project(points: Tensor, simplex: Simplex) -> Tensor:
    """The nearest point to each row of [R, k] with λ ≥ 0 and Σ λ = 1 ("paper"), or Σ λ ≤ 1 ("anchored")."""
    if simplex == "paper":
        return _onto_simplex(points)
    positive = points.clamp(min=0)
    inside = positive.sum(1, keepdim=True) <= 1
    return torch.where(inside, positive, _onto_simplex(points))


def _onto_simplex(points: Tensor) -> Tensor:
    """By sorting (Held, Wolfe & Crowder 1974): subtract the shift that leaves positive parts with the sum 1."""
    ordered = points.sort(1, descending=True).values
    ranks = torch.arange(1, points.shape[1] + 1, dtype=points.dtype)
    shifts = (ordered.cumsum(1) - 1) / ranks
    support = (ordered > shifts).sum(1, keepdim=True)  # those stay positive; a prefix of the order
    return (points - shifts.gather(1, support - 1)).clamp(min=0)
