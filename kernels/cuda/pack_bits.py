"""Masks as one bit an element."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, Row
from .numeric import place, pointer, store_bits


@triton.jit
def _tile(row, start, n, FULL: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr):
    offsets = start + tl.arange(0, TILE)
    mask = pointer(row + 3, tl.uint8, ALIGNED)
    on = tl.load(mask + offsets) if FULL else tl.load(mask + offsets, mask=offsets < n, other=0)
    store_bits(pointer(row + 4, tl.uint8, ALIGNED), start, on != 0, n, FULL, TILE)


@triton.jit(do_not_specialize=["width"])
def pack_bits_tile(table, owners, width, ALIGNED: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr):
    """Row: mask, a byte an element; out."""
    row, start, n = place(table, owners, width, SINGLE, TILE)
    if start + TILE <= n:
        _tile(row, start, n, True, ALIGNED, TILE)
    else:
        _tile(row, start, n, False, ALIGNED, TILE)


def pack_bits(mask: Tensor, out: Tensor) -> None:
    if mask.numel():
        launch = Launch("pack_bits", [Row(mask.numel(), (mask, out))], (mask, out))
        launch(pack_bits_tile)
