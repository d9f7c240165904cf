"""An expert: the elements of a task vector above a cut (FREE-Merging, Zheng & Wang 2025, Section 5.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from .numeric import BLOCK, narrow, task_vectors


def extract_topk(
    base: Tensor, model: Tensor, magnitude: float, index: int, counts: Tensor, offsets: Tensor, values: Tensor
) -> int:
    """The elements of τ above the cut (magnitude, index), in order, while there is room; returns how many there are.

    base, model: [N]; counts: int32 [ceil(N/65 536)], the number in each block; offsets: uint16 [k], where in its block
    each stands; values: [k], τ rounded.
    """
    (tau,) = task_vectors(base, [model])
    size, cut = tau.abs(), torch.tensor(magnitude, dtype=tau.dtype)
    place = torch.arange(tau.numel(), device=tau.device)
    above = ((size > cut) | ((size == cut) & (place < index))).nonzero()[:, 0]
    counts.copy_(torch.bincount(above // BLOCK, minlength=counts.numel()))
    chosen = above[: offsets.numel()]
    offsets[: chosen.numel()] = (chosen % BLOCK).to(torch.uint16)
    values[: chosen.numel()] = narrow(tau[chosen], values.dtype)
    return above.numel()
