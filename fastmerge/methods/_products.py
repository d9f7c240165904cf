"""Inner products of the vectors that a merge combines: of whole tensors, or of each of their rows or columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ._select import at_a_time, slabs

if TYPE_CHECKING:
    from torch import Tensor


class Groups(NamedTuple):
    """A tensor's parts, each a vector of its own: element i belongs to part (i // inner) mod number.

    Either its `number` rows of `inner` elements, or with inner = 1 its `number` columns.
    """

    number: int
    inner: int


def gram(base: Tensor | None, models: Sequence[Tensor]) -> Tensor:
    """⟨v_j, v_k⟩ of whole tensors, float64 [K, K, 1]; v_k is τ_k in the working type, without a base θ_k."""
    import torch

    from .. import ops

    count = len(models)
    sums = [torch.zeros(2 * (count - j) + 1, dtype=torch.float64, device=models[0].device) for j in range(count)]
    for own in slabs(models[0]):
        vectors = [_vector(base, model, own) for model in models]
        for j, vector in enumerate(vectors):
            ops.inner_products(vector, vectors[j:], sums=sums[j])
    upper = torch.stack([torch.nn.functional.pad(row[: count - j], (j, 0)) for j, row in enumerate(sums)])
    return (upper + upper.triu(1).T)[:, :, None]


def grouped_gram(base: Tensor | None, models: Sequence[Tensor], groups: Groups) -> Tensor:
    """The same of every group of the tensor, float64 [K, K, groups]."""
    import torch

    found = torch.zeros(len(models), len(models), groups.number, dtype=torch.float64, device=models[0].device)
    columns = groups.number if groups.inner == 1 else groups.inner
    rows = max(1, at_a_time(models[0]) // (2 * columns))
    for start in range(0, models[0].numel(), rows * columns):
        own = slice(start, start + rows * columns)
        vectors = torch.stack([_vector(base, model, own).double().view(-1, columns) for model in models], 1)
        if groups.inner == 1:
            for j, vector in enumerate(vectors.unbind(1)):
                found[j] += (vector[:, None] * vectors).sum(0)
        else:
            first = start // columns
            found[:, :, first : first + len(vectors)] = (vectors @ vectors.mT).permute(1, 2, 0)
    return found


def _vector(base: Tensor | None, model: Tensor, own: slice) -> Tensor:
    """v_k of these elements."""
    from .. import ops

    return model[own] if base is None else ops.delta_sum(base[own], [model[own]])
