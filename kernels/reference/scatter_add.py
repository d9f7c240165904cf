"""An expert added to a model, or, with its scale negated, taken away (FREE-Merging, Zheng & Wang 2024, Section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from .numeric import BLOCK, narrow, working_dtype


def scatter_add(theta: Tensor, counts: Tensor, offsets: Tensor, values: Tensor, scale: float) -> None:
    """theta_i = theta_i + scale · value_i, in place, for the elements that extract_topk wrote.

    theta: [N]; counts: int32 [ceil(N/65 536)]; offsets: uint16 [k]; values: [k].
    """
    dtype = working_dtype([theta, values])
    blocks = torch.arange(counts.numel(), device=theta.device).repeat_interleave(counts.to(torch.int64))
    place = blocks * BLOCK + offsets.to(torch.int64)
    changed = theta[place].to(dtype) + torch.tensor(scale, dtype=dtype) * values.to(dtype)
    theta[place] = narrow(changed, theta.dtype)
