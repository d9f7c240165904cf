"""The weighted sum of task vectors, unrounded: what a linear filter is applied to."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .combine import combine


def delta_sum(base: Tensor, models: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> None:
    """out = Σ_k w_k · τ_k, in the order of k. out: [N], float32 (float64 keeps a float64 working type whole)."""
    combine(base, models, weights, 1.0, 1.0, "sum", True, (None, None, None), 0, out)
