"""Where an expert's elements are: shared by the ops that read, write and change them."""

from __future__ import annotations

import torch
from torch import Tensor

from .numeric import BLOCK


def indices(n: int, counts: Tensor, offsets: Tensor) -> Tensor | None:
    """The elements of a tensor of n, int64 [k]; None where counts and offsets describe no such elements."""
    if counts.numel() != -(-n // BLOCK) or (counts < 0).any() or int(counts.sum()) != offsets.numel():
        return None
    starts = torch.arange(counts.numel(), device=counts.device) * BLOCK
    found = torch.repeat_interleave(starts, counts) + offsets.to(torch.int64)
    return None if found.numel() and int(found.max()) >= n else found
