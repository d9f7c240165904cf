"""What a tensor has at an expert's elements."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .enqueue import enqueue
from .experts import TILE, bits_of, check, elements, ends_of
from .launch import on_device


@triton.jit
def gather_block(theta, counts, ends, offsets, out, valid, TILE: tl.constexpr):
    """Of one block; nothing unless the expert is valid."""
    count = tl.load(counts + tl.program_id(0))
    if tl.load(valid) != 0:
        for start in range(0, count, TILE):
            places, index, there = elements(counts, ends, offsets, start, TILE)
            tl.store(out + places, tl.load(theta + index, mask=there), mask=there)


def gather(theta: Tensor, counts: Tensor, offsets: Tensor, out: Tensor) -> bool:
    valid = check(theta.numel(), [(counts, offsets)], theta)
    if theta.numel() and offsets.numel():
        with on_device(theta):
            arguments = bits_of(theta), counts, ends_of(counts), offsets, bits_of(out), valid
            enqueue(gather_block, (counts.numel(), 1, 1), *arguments, TILE=TILE)
    return bool(valid)
