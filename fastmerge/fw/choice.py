"""From scores to vertices: which candidates a step goes towards, and how far it is to the optimum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .candidates import Scores

Alignment = Literal["inner", "cosine"]
Level = Literal["task", "layer"]


def by_row(values: Tensor, rows: Sequence[int]) -> Tensor:
    """[T, K] added up by the rows of coefficients that tensors belong to: [R, K]."""
    found = torch.zeros((max(rows) + 1, values.shape[1]), dtype=values.dtype)
    return found.index_add_(0, torch.tensor(rows), values)


def aligned(scores: Scores, alignment: Alignment) -> Tensor:
    """What vertices are chosen by, by tensor [T, K], the least being the best.

    "inner": ⟨g, θ_k⟩ (Eq. 7). "cosine": that of each tensor, as in the released code; 0 where one of the two is 0.
    """
    if alignment == "inner":
        return scores.dots
    lengths = scores.norms.sqrt() * scores.gradient_norms.sqrt().unsqueeze(1)
    return torch.where(lengths > 0, scores.dots / lengths, 0.0)


def best(alignment: Tensor, allowed: Sequence[int], lmo: Level, count: int) -> Tensor:
    """The `count` best of the allowed candidates, of equal ones the first: int64 [R, count].

    By row of an alignment [R, K], or (lmo "task") by its sum the same for every row.
    """
    values = alignment if lmo == "layer" else alignment.sum(0, keepdim=True)
    order = values[:, list(allowed)].sort(dim=1, stable=True).indices[:, :count]
    return torch.tensor(list(allowed))[order].expand(len(alignment), -1)


def best_by_task(alignments: Sequence[Tensor], allowed: Sequence[int], lmo: Level, count: int) -> Tensor:
    """Task after task, the `count` best that no task before has taken (as the released code has it), [R, …]."""
    taken = torch.empty((len(alignments[0]), 0), dtype=torch.int64)
    for alignment in alignments:
        left = min(count, len(allowed) - taken.shape[1])
        free = alignment.scatter(1, taken, torch.inf)
        taken = torch.cat([taken, best(free, allowed, lmo, left)], 1)
    return taken


def gap(dots: Tensor, coefficients: Tensor, allowed: Sequence[int]) -> float:
    """max over vertices of ⟨−g, s − θ_t⟩ (Eq. 4), summed over the rows of dots and coefficients [R, K].

    θ_t is what its coefficients make of the candidates: where it is in the hull of those allowed, this is not negative,
    and for a convex loss no less than ℓ(θ_t) − min ℓ.
    """
    own = (coefficients * dots).sum(1)
    return float((own - dots[:, list(allowed)].min(1).values).sum())
