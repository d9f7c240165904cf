"""Experts' values in place of a tensor's."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .experts import TILE, bits_of, check, elements, ends_of
from .launch import OPTIONS, on_device


@triton.jit
def scatter_block(theta, counts, ends, offsets, values, valid, TILE: tl.constexpr):
    """Of one block; nothing unless all experts are valid."""
    count = tl.load(counts + tl.program_id(0))
    if tl.load(valid) != 0:
        for start in range(0, count, TILE):
            places, index, there = elements(counts, ends, offsets, start, TILE)
            tl.store(theta + index, tl.load(values + places, mask=there), mask=there)


def scatter(theta: Tensor, experts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> bool:
    valid = check(theta.numel(), [(counts, offsets) for counts, offsets, _ in experts], theta)
    for counts, offsets, values in experts if theta.numel() else ():
        if offsets.numel():
            with on_device(theta):
                scatter_block[(counts.numel(),)](
                    bits_of(theta), counts, ends_of(counts), offsets, bits_of(values), valid, TILE=TILE, **OPTIONS
                )
    return bool(valid)
