"""Inner products of the vectors that a merge combines, of each of their rows or columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ._select import at_a_time

if TYPE_CHECKING:
    from torch import Tensor


class Groups(NamedTuple):
    """A tensor's parts, each a vector of its own: element i belongs to part (i // inner) mod number.

    Either its `number` rows of `inner` elements, or with inner = 1 its `number` columns.
    """

    number: int
    inner: int


def grouped_gram(base: Tensor | None, models: Sequence[Tensor], groups: Groups) -> Tensor:
    """⟨v_j, v_k⟩ of every group of a tensor, float64 [K, K, groups]; v_k is τ_k, without a base θ_k."""
    import torch

    from .. import ops

    columns = groups.number if groups.inner == 1 else groups.inner
    rows = max(1, at_a_time(models[0]) // (2 * columns))
    pieces = [slice(a, a + rows * columns) for a in range(0, models[0].numel(), rows * columns)]
    if groups.inner > 1:
        own = ((None if base is None else base[p], [model[p] for model in models]) for p in pieces)
        return torch.cat([ops.row_gram(*piece, columns) for piece in own], 2)
    found = torch.zeros(len(models), len(models), groups.number, dtype=torch.float64, device=models[0].device)
    wide = found.new_empty(min(rows, models[0].numel() // columns), len(models), columns)  # new memory would cost more
    for piece in pieces:
        vectors = wide[: models[0][piece].numel() // columns]
        for k, model in enumerate(models):
            vectors[:, k] = _vector(base, model, piece).view(-1, columns)
        for j, vector in enumerate(vectors.unbind(1)):
            found[j] += (vector[:, None] * vectors).sum(0)
    return found


def _vector(base: Tensor | None, model: Tensor, own: slice) -> Tensor:
    """v_k of these elements."""
    from .. import ops

    return model[own] if base is None else ops.delta_sum(base[own], [model[own]])
