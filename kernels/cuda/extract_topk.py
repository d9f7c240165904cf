"""An expert: the elements of a task vector above a cut."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference.numeric import narrow, working_dtype
from .magnitude import above, collect, count, is_wide


def extract_topk(
    base: Tensor, model: Tensor, magnitude: float, index: int, counts: Tensor, offsets: Tensor, values: Tensor
) -> int:
    """As the reference."""
    if magnitude != magnitude:  # nothing is above NaN
        counts.zero_()
        return 0
    selection = above(magnitude, index, is_wide(base, model))
    counts.copy_(count(base, model, selection))
    found = int(counts.sum())
    chosen = min(found, offsets.numel())
    taus = torch.empty(chosen, dtype=working_dtype([base, model]), device=model.device)
    collect(base, model, selection, counts, offsets[:chosen], taus)
    values[:chosen] = narrow(taus, values.dtype)
    return found
