"""The generalised task arithmetic (Ilharco et al. 2023, and the methods built on it)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .numeric import narrow, task_vectors


def combine(
    base: Tensor | None,
    models: Sequence[Tensor],
    weights: Sequence[float],
    divisor: float,
    scale: float,
    consensus: str,
    as_delta: bool,
    out: Tensor,
) -> int:
    """out = base + scale · d / divisor, where d is the consensus of w_k · τ_k; returns out's non-finite elements.

    consensus "sum": Σ_k w_k · τ_k, in the order of k; "max": the term of largest magnitude, the first of equals, NaN
    above all (MagMax, Marczak et al. 2024). Without a base τ_k is θ_k. as_delta: out is the delta, base is not added.
    """
    terms = [torch.tensor(w, dtype=tau.dtype) * tau for w, tau in zip(weights, task_vectors(base, models), strict=True)]
    if consensus == "sum":
        delta = terms[0]
        for term in terms[1:]:
            delta = delta + term
    else:
        delta = torch.zeros_like(terms[0])
        for term in terms:
            delta = torch.where((term.abs() > delta.abs()) | term.isnan(), term, delta)
    if divisor != 1:
        delta = delta / torch.tensor(divisor, dtype=delta.dtype)
    if scale != 1:
        delta = torch.tensor(scale, dtype=delta.dtype) * delta
    if base is not None and not as_delta:
        delta = base.to(delta.dtype) + delta
    out.copy_(narrow(delta, out.dtype))
    return int(out.numel() - out.isfinite().sum())
