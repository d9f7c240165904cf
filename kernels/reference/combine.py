"""The generalised task arithmetic (Ilharco et al. 2023, and the methods built on it)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

from .kept import Kept, kept_elements
from .numeric import narrow, task_vectors


def combine(
    base: Tensor | None,
    models: Sequence[Tensor],
    weights: Sequence[float],
    divisor: float | Sequence[float],
    scale: float,
    consensus: str,
    as_delta: bool,
    kept: Kept,
    offset: int,
    out: Tensor,
) -> int:
    """out = base + scale · d / divisor, where d is the consensus of x_k = w_k · τ_k, +0 where not kept.

    consensus "sum": Σ_k x_k, in the order of k; "max": the term of largest magnitude, the first of equals, NaN above
    all (MagMax, Marczak et al. 2024); "weighted", "unweighted", "count": those that agree with a vote on the sign
    (TIES-Merging, Yadav et al. 2023, arXiv 2306.01708). Without a base τ_k is θ_k. as_delta: out is the delta, base
    is not added.

    Returns the number of elements that are non-finite in out or, where a selection or a vote may hide them, in any τ_k.
    """
    taus = task_vectors(base, models)
    bad = torch.zeros_like(out, dtype=torch.bool)
    if any(part is not None for part in kept) or consensus not in ("sum", "max"):
        bad = ~reduce(torch.logical_and, [tau.isfinite() for tau in taus])
    on = [kept_elements(k, tau, kept, offset) for k, tau in enumerate(taus)]
    terms = [torch.where(o, _scalar(w, tau) * tau, 0) for o, w, tau in zip(on, weights, taus, strict=True)]
    if consensus == "sum":
        delta = reduce(add, terms)
    elif consensus == "max":
        delta = reduce(_larger, terms, torch.zeros_like(terms[0]))
    elif consensus == "unweighted":
        votes = [torch.where(o, tau, 0) for o, tau in zip(on, taus, strict=True)]
        delta = _elected(votes, terms, divisor)
    elif consensus == "count":
        delta = _elected([(x > 0).to(x.dtype) - (x < 0).to(x.dtype) for x in terms], terms, divisor)
    else:
        delta = _elected(terms, terms, divisor)
    if isinstance(divisor, float) and divisor != 1:
        delta = delta / _scalar(divisor, delta)
    if scale != 1:
        delta = _scalar(scale, delta) * delta
    if base is not None and not as_delta:
        delta = base.to(delta.dtype) + delta
    out.copy_(narrow(delta, out.dtype))
    return int((bad | ~out.isfinite()).sum())


def _elected(votes: list[Tensor], terms: list[Tensor], divisor: float | Sequence[float]) -> Tensor:
    """The sum of the terms whose vote has the sign of the sum of votes (zero: +), by that of their shares if given."""
    up = ~(reduce(add, votes) < 0)
    agree = [torch.where(up, vote > 0, vote < 0) for vote in votes]
    delta = reduce(add, [torch.where(a, term, 0) for a, term in zip(agree, terms, strict=True)])
    if isinstance(divisor, float):
        return delta
    total = reduce(add, [torch.where(a, _scalar(share, delta), 0) for a, share in zip(agree, divisor, strict=True)])
    return torch.where(total != 0, delta / total, delta)


def _larger(a: Tensor, b: Tensor) -> Tensor:
    return torch.where((b.abs() > a.abs()) | b.isnan(), b, a)


def _scalar(x: float, like: Tensor) -> Tensor:
    return torch.tensor(x, dtype=like.dtype)
