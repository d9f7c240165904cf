"""Magnitude order: |τ| as integers that compare alike, a NaN above infinity; equal ones are told apart by index."""

from __future__ import annotations

import torch
from torch import Tensor


def magnitude_keys(tau: Tensor, wide: bool = False) -> Tensor:
    """The bits of |τ| as int64, of every NaN those of the quiet one. wide: the bits of |τ| in float64."""
    size = (tau.to(torch.float64) if wide else tau).abs()
    size = torch.where(size.isnan(), torch.nan, size)
    return size.view(torch.int64 if size.dtype == torch.float64 else torch.int32).to(torch.int64)
