"""One task's model: base + scale · mask ⊙ unified."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import OPTIONS, on_device, settings
from .numeric import load, store


@triton.jit
def _tile(
    base, unified, mask, scale, out, n, words, start, FULL: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr
):
    offsets = start + tl.arange(0, TILE)
    places = start // 8 + tl.arange(0, TILE // 8)
    packed = tl.load(mask + places) if FULL else tl.load(mask + places, mask=places < words, other=0)
    bits = (packed.to(tl.int32)[:, None] >> tl.arange(0, 8)[None, :]) & 1
    on = tl.reshape(bits, (TILE,)) != 0
    delta = tl.where(on, load(unified, offsets, n, FULL, WORKING), 0.0)
    factor = tl.load(scale).to(WORKING)
    store(out, offsets, load(base, offsets, n, FULL, WORKING) + factor * delta, n, FULL)


@triton.jit
def modulate_tile(base, unified, mask, scale, out, n, words, TILE: tl.constexpr, WORKING: tl.constexpr):
    """scale points to one float64: an argument would be narrowed to float32."""
    start = tl.program_id(0).to(tl.int64) * TILE
    if start + TILE <= n:
        _tile(base, unified, mask, scale, out, n, words, start, True, TILE, WORKING)
    else:
        _tile(base, unified, mask, scale, out, n, words, start, False, TILE, WORKING)


def modulate(base: Tensor, unified: Tensor, mask: Tensor, scale: float, out: Tensor) -> None:
    n = base.numel()
    if n == 0:
        return
    wide = torch.float64 in (base.dtype, unified.dtype)
    chosen = settings(max(t.element_size() for t in (base, unified, out)))
    factor = torch.tensor([scale], dtype=torch.float64, device=base.device)
    with on_device(base):
        modulate_tile[(triton.cdiv(n, chosen.tile),)](
            base,
            unified,
            mask,
            factor,
            out,
            n,
            mask.numel(),
            TILE=chosen.tile,
            WORKING=tl.float64 if wide else tl.float32,
            num_warps=chosen.warps,
            **OPTIONS,
        )
