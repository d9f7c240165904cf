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
    return Filtered(base, models, weights, convention, limit).write(0, scale, as_delta, out.view(-1))


class Filtered:
    """G(Σ_k w_k · τ_k), which `write` merges piece by piece. All [B, H, W]."""

    def __init__(
        self,
        base: Tensor,
        models: Sequence[Tensor],
        weights: Sequence[float],
        convention: str,
        limit: int,
        each: bool = False,
    ) -> None:
        self.inputs = base, models, convention, limit
        self.base = base.view(-1)
        self.delta = torch.empty_like(base, dtype=working_dtype([base, *models]))
        delta_sum(base, models, weights, self.delta)
        highpass(self.delta, convention, limit, self.delta)

    def write(self, start: int, scale: float, as_delta: bool, out: Tensor) -> int:
        """out = base + scale · the filtered sum, of the elements from `start` on; returns out's non-finite elements.

        out: 1-D. The same bits whatever the pieces.
        """
        piece = slice(start, start + out.numel())
        delta = self.delta.view(-1)[piece]
        if scale != 1:
            delta = torch.tensor(scale, dtype=delta.dtype) * delta
        out.copy_(narrow(delta if as_delta else self.base[piece].to(delta.dtype) + delta, out.dtype))
        return int(out.numel() - out.isfinite().sum())

    def each_magnitude(self) -> list[float]:
        """`magnitudes` of the inputs. Asked for only where `each` is, and all is written; backends may then add them up
        while they write."""
        return self.magnitudes(*self.inputs)

    @staticmethod
    def magnitudes(base: Tensor, models: Sequence[Tensor], convention: str, limit: int) -> list[float]:
        """Per model Σ|G(τ_k)|, terms widened to float64. All [B, H, W]."""
        deltas = [Filtered(base, [model], [1.0], convention, limit).delta for model in models]
        return [float(delta.to(torch.float64).abs().sum()) for delta in deltas]
