"""An expert added to a model, or, with its scale negated, taken away."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .enqueue import enqueue
from .experts import TILE, check, elements, ends_of
from .launch import on_device, upload, working
from .numeric import narrow, widen


@triton.jit
def scatter_add_block(theta, counts, ends, offsets, values, scale, valid, TILE: tl.constexpr, WORKING: tl.constexpr):
    """Of one block; nothing unless the expert is valid. scale points to one float64: an argument would be narrowed."""
    count = tl.load(counts + tl.program_id(0))
    factor = tl.load(scale).to(WORKING)
    if tl.load(valid) != 0:
        for start in range(0, count, TILE):
            places, index, there = elements(counts, ends, offsets, start, TILE)
            change = factor * widen(tl.load(values + places, mask=there, other=0.0), WORKING)
            changed = widen(tl.load(theta + index, mask=there, other=0.0), WORKING) + change
            tl.store(theta + index, narrow(changed, theta.dtype.element_ty), mask=there)


def scatter_add(theta: Tensor, counts: Tensor, offsets: Tensor, values: Tensor, scale: float) -> bool:
    valid = check(theta.numel(), [(counts, offsets)], theta)
    if theta.numel() and offsets.numel():
        factor = upload(torch.tensor([scale], dtype=torch.float64), theta.device)
        with on_device(theta):
            enqueue(
                scatter_add_block, (counts.numel(), 1, 1), theta, counts, ends_of(counts), offsets, values, factor,
                valid, TILE=TILE, WORKING=working((theta, values)),
            )  # fmt: skip
    return bool(valid)
