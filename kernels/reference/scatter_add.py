"""An expert added to a model, or, with its scale negated, taken away (FREE-Merging, Zheng & Wang 2025, Section 5.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from .experts import indices
from .numeric import narrow, working_dtype


def scatter_add(theta: Tensor, counts: Tensor, offsets: Tensor, values: Tensor, scale: float) -> bool:
    """theta_i = theta_i + scale · value_i, in place, for the elements that extract_topk wrote.

    theta: [N]; counts: int32 [ceil(N/65 536)]; offsets: uint16 [k]; values: [k]. False: theta has no such elements.
    """
    place = indices(theta.numel(), counts, offsets)
    if place is None:
        return False
    dtype = working_dtype([theta, values])
    changed = theta[place].to(dtype) + torch.tensor(scale, dtype=dtype) * values.to(dtype)
    theta[place] = narrow(changed, theta.dtype)
    return True
