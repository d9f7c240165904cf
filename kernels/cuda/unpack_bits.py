"""The reverse of pack_bits."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, Row
from .numeric import load_bits, place, pointer


@triton.jit
def _tile(row, start, n, FULL: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr):
    offsets = start + tl.arange(0, TILE)
    bits = load_bits(pointer(row + 3, tl.uint8, ALIGNED), start, n, FULL, TILE).to(tl.uint8)
    out = pointer(row + 4, tl.uint8, ALIGNED)
    if FULL:
        tl.store(out + offsets, bits)
    else:
        tl.store(out + offsets, bits, mask=offsets < n)


@triton.jit(do_not_specialize=["width"])
def unpack_bits_tile(table, owners, width, ALIGNED: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr):
    """Row: packed; out, a byte an element."""
    row, start, n = place(table, owners, width, SINGLE, TILE)
    if start + TILE <= n:
        _tile(row, start, n, True, ALIGNED, TILE)
    else:
        _tile(row, start, n, False, ALIGNED, TILE)


def unpack_bits(packed: Tensor, out: Tensor) -> None:
    if out.numel():
        launch = Launch("unpack_bits", [Row(out.numel(), (packed, out))], (packed, out))
        launch(unpack_bits_tile)
