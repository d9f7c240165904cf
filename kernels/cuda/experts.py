"""Where an expert's elements are: a program a block of 65 536 goes through those that it has."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .enqueue import enqueue
from .launch import on_device
from .numeric import BLOCK

TILE = 1024  # elements of an expert that a program works on at a time
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit(do_not_specialize=["n", "blocks", "k"])
def check_expert(counts, offsets, valid, n, blocks, k, TILE: tl.constexpr):
    """valid = 0 unless counts are of k elements and those of the last block, which may be short, are below n."""
    lanes = tl.arange(0, TILE)
    total = tl.zeros([TILE], tl.int64)
    negative = tl.zeros([TILE], tl.int32)
    for start in range(0, blocks, TILE):
        count = tl.load(counts + start + lanes, mask=start + lanes < blocks, other=0)
        total += count
        negative += (count < 0).to(tl.int32)
    last = tl.load(counts + blocks - 1).to(tl.int64)
    size = n - (blocks - 1).to(tl.int64) * BLOCK
    beyond = tl.zeros([TILE], tl.int32)
    wrong = (tl.sum(total, 0) != k) | (tl.sum(negative, 0) > 0)
    if wrong == 0:
        for first in range(0, last, TILE):
            places = first + lanes
            offset = tl.load(offsets + (k - last) + places, mask=places < last, other=0).to(tl.int64)
            beyond += ((offset >= size) & (places < last)).to(tl.int32)
    if wrong | (tl.sum(beyond, 0) > 0):
        tl.store(valid, 0)


@triton.jit
def elements(counts, ends, offsets, start, TILE: tl.constexpr):
    """Of this program's block, from its start-th element of the expert: places in the expert, in the tensor, and which
    there are."""
    block = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + block)
    within = start + tl.arange(0, TILE)
    there = within < count
    places = tl.load(ends + block) - count + within
    offset = tl.load(offsets + places, mask=there, other=0).to(tl.int64)
    return places, block * BLOCK + offset, there


def check(n: int, experts: list[tuple[Tensor, Tensor]], like: Tensor) -> Tensor:
    """int32 [1]: 1 if all (counts, offsets) are of elements of a tensor of n, else 0. The host does not wait for it."""
    valid = torch.ones(1, dtype=torch.int32, device=like.device)
    for counts, offsets in experts:
        if counts.numel() != -(-n // BLOCK.value) or (not n and offsets.numel()):
            valid.zero_()
        elif n:
            with on_device(like):
                enqueue(check_expert, (1, 1, 1), counts, offsets, valid, n, counts.numel(), offsets.numel(), TILE=TILE)
    return valid


def ends_of(counts: Tensor) -> Tensor:
    """Where each block's elements end in the expert: int64 [blocks]."""
    return counts.cumsum(0, dtype=torch.int64)


def bits_of(tensor: Tensor) -> Tensor:
    """The same memory as integers, which are copied bit by bit."""
    return tensor.view(WORDS[tensor.element_size()])
