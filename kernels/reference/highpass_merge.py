"""FR-Merging of a matrix: the filtered weighted sum of task vectors on top of base (Zheng & Wang 2025, Eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .delta_sum import delta_sum
from .highpass import highpass
from .numeric import narrow, working_dtype


def highpass_merge(
    base: Tensor,
    models: Sequence[Tensor],
    weights: Sequence[float],
    convention: str,
    limit: int,
    scale: float,
    as_delta: bool,
    out: Tensor,
) -> int:
    """out = base + scale · G(Σ_k w_k · τ_k), G being highpass; returns out's non-finite elements. All [B, H, W]."""
    delta = torch.empty_like(base, dtype=working_dtype([base, *models]))
    delta_sum(base, models, weights, delta)
    highpass(delta, convention, limit, delta)
    if scale != 1:
        delta = torch.tensor(scale, dtype=delta.dtype) * delta
    out.copy_(narrow(delta if as_delta else base.to(delta.dtype) + delta, out.dtype))
    return int(out.numel() - out.isfinite().sum())
