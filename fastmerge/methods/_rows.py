"""The largest magnitudes of every row."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ..ops import Expert

SLAB = 1 << 22  # elements that are looked at together


def largest_of_rows(base: Tensor, model: Tensor, columns: int, k: int) -> Expert:
    """The k elements of largest |τ| of every row of `columns`, of equal ones the first, in the working type."""
    import torch

    from .. import ops

    rows = max(1, SLAB // columns)
    places, values = [], []
    for start in range(0, base.numel() if k else 0, rows * columns):
        own = slice(start, start + rows * columns)
        tau = ops.delta_sum(base[own], [model[own]]).view(-1, columns)
        size = tau.abs()
        least = size.topk(k).values[:, -1:]
        above, equal = size > least, size == least
        room = k - above.sum(1, keepdim=True)
        chosen = (above | (equal & (equal.cumsum(1) <= room))).view(-1).nonzero()[:, 0]
        places.append(start + chosen)
        values.append(tau.view(-1)[chosen])
    if not places:
        places, values = [base.new_empty(0, dtype=torch.int64)], [ops.delta_sum(base[:0], [model[:0]])]
    place = torch.cat(places)
    counts = torch.bincount(place // ops.BLOCK, minlength=-(-base.numel() // ops.BLOCK)).to(torch.int32)
    return ops.Expert(counts, (place % ops.BLOCK).to(torch.uint16), torch.cat(values))
