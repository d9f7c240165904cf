"""A matrix with a change of low rank added: LoRA merged into its base (Hu et al. 2021, arXiv 2106.09685, §4.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from .numeric import narrow, working_dtype


def low_rank(base: Tensor, up: Tensor, down: Tensor, scale: float, column: int, out: Tensor) -> None:
    """out = base + scale · up · down, of the product's elements from row 0, `column` on, as many as base has.

    base, out: [N]; up: [R, r], down: [r, C], both in the working type. The sum over r runs in order.
    """
    dtype = working_dtype([base, up, down])
    delta = up[:, 0, None] * down[0]
    for j in range(1, up.shape[1]):
        delta = delta + up[:, j, None] * down[j]
    delta = delta.reshape(-1)[column : column + base.numel()]
    out.copy_(narrow(base.to(dtype) + torch.tensor(scale, dtype=dtype) * delta, out.dtype))
