"""FR-Merging's filter: the high frequencies of a matrix (Zheng & Wang 2025, Eq. 1-2)."""

from __future__ import annotations

import torch
from torch import Tensor


def kept(h: int, w: int, convention: str, limit: int) -> Tensor:
    """Which bins of an h × w spectrum are kept: [h, w], bool.

    "paper": those whose signed frequency (η, γ) has η² + γ² ≥ limit;
    "released": those whose indices (y, x) have (y − h//2)² + (x − w//2)² ≤ limit.
    """
    y, x = torch.arange(h)[:, None], torch.arange(w)
    if convention == "paper":
        y, x = torch.minimum(y, h - y), torch.minimum(x, w - x)
        return y * y + x * x >= limit
    return (y - h // 2) ** 2 + (x - w // 2) ** 2 <= limit


def highpass(x: Tensor, convention: str, limit: int, out: Tensor) -> None:
    """out = Re ifft2(kept · fft2(x)) in float64, matrix by matrix, rounded once. x, out: [B, H, W]."""
    mask = kept(x.shape[1], x.shape[2], convention, limit).to(x.device)
    for matrix, result in zip(x, out, strict=True):
        result.copy_(torch.fft.ifft2(mask * torch.fft.fft2(matrix.to(torch.float64))).real)
