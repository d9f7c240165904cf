"""EMR-Merging's elect: unified, K packed masks and 2K sums from one reading of global memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import BLOCK, OPTIONS, UNROLLED, on_device, settings
from .numeric import add_tile_sums, load, store, store_bits


@triton.jit
def _put_task(tau, up, magnitude, masks, sums, k, models, start, words, FULL: tl.constexpr, TILE: tl.constexpr):
    """One task's mask, and its two sums of this tile."""
    mask = tl.where(up, tau > 0, tau < 0)
    store_bits(masks + k * words, start, mask, words, FULL, TILE)
    tl.store(sums + k, tl.sum(tl.abs(tau).to(tl.float64), 0))
    tl.store(sums + models + k, tl.sum(tl.where(mask, magnitude, 0.0).to(tl.float64), 0))


@triton.jit
def _unrolled(
    base, models, unified, masks, sums, n, words, start, FULL: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr,
    WORKING: tl.constexpr,
):  # fmt: skip
    offsets = start + tl.arange(0, TILE)
    theta = load(base, offsets, n, FULL, WORKING)
    taus = ()
    total = load(models[0], offsets, n, FULL, WORKING) - theta
    for k in tl.static_range(K):
        tau = load(models[k], offsets, n, FULL, WORKING) - theta
        taus = taus + (tau,)
        if k > 0:
            total = total + tau
    up = total > 0
    magnitude = tl.zeros([TILE], WORKING)
    for k in tl.static_range(K):
        agreeing = tl.where(up, taus[k], -taus[k])
        magnitude = tl.where(agreeing > magnitude, agreeing, magnitude)  # tl.maximum mistreats signed zeros
    store(unified, offsets, tl.where(up, magnitude, 0.0 - magnitude), n, FULL)
    for k in tl.static_range(K):
        _put_task(taus[k], up, magnitude, masks, sums, k, K, start, words, FULL, TILE)


@triton.jit
def _looped(
    base, table, unified, masks, sums, n, words, start, models, FULL: tl.constexpr, ELEMENT: tl.constexpr,
    ALIGNED: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    offsets = start + tl.arange(0, TILE)
    theta = load(base, offsets, n, FULL, WORKING)
    total = tl.zeros([TILE], WORKING)
    for k in range(models):
        pointer = tl.multiple_of(tl.load(table + k).to(tl.pointer_type(ELEMENT)), ALIGNED)
        tau = load(pointer, offsets, n, FULL, WORKING) - theta
        total = tl.where(k > 0, total + tau, tau)
    up = total > 0
    magnitude = tl.zeros([TILE], WORKING)
    for k in range(models):  # read again from the cache: any number of task vectors would not stay in registers
        pointer = tl.multiple_of(tl.load(table + k).to(tl.pointer_type(ELEMENT)), ALIGNED)
        tau = load(pointer, offsets, n, FULL, WORKING) - theta
        agreeing = tl.where(up, tau, -tau)
        magnitude = tl.where(agreeing > magnitude, agreeing, magnitude)
    store(unified, offsets, tl.where(up, magnitude, 0.0 - magnitude), n, FULL)
    for k in range(models):
        pointer = tl.multiple_of(tl.load(table + k).to(tl.pointer_type(ELEMENT)), ALIGNED)
        tau = load(pointer, offsets, n, FULL, WORKING) - theta
        _put_task(tau, up, magnitude, masks, sums, k, models, start, words, FULL, TILE)


@triton.jit
def elect_unrolled(
    base, models, unified, masks, sums, n, words, K: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr
):
    """Few models, given as a tuple of pointers of any dtypes. sums: float64 [tiles, 2 K]."""
    tile = tl.program_id(0).to(tl.int64)
    start = tile * TILE
    own = sums + tile * 2 * K
    if start + TILE <= n:
        _unrolled(base, models, unified, masks, own, n, words, start, True, K, TILE, WORKING)
    else:
        _unrolled(base, models, unified, masks, own, n, words, start, False, K, TILE, WORKING)


@triton.jit
def elect_looped(
    base, table, unified, masks, sums, n, words, models, ELEMENT: tl.constexpr, ALIGNED: tl.constexpr,
    TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """Any number of models of one dtype, given as a table of addresses. sums: float64 [tiles, 2 models]."""
    tile = tl.program_id(0).to(tl.int64)
    start = tile * TILE
    own = sums + tile * 2 * models
    if start + TILE <= n:
        _looped(base, table, unified, masks, own, n, words, start, models, True, ELEMENT, ALIGNED, TILE, WORKING)
    else:
        _looped(base, table, unified, masks, own, n, words, start, models, False, ELEMENT, ALIGNED, TILE, WORKING)


ELEMENTS = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


def elect(base: Tensor, models: Sequence[Tensor], unified: Tensor, masks: Tensor, sums: Tensor) -> None:
    n, k = base.numel(), len(models)
    if n == 0:
        return
    dtypes = {m.dtype for m in models}
    wide = torch.float64 in dtypes or base.dtype == torch.float64
    chosen = settings(max(t.element_size() for t in (base, unified, *models)))
    tiles = triton.cdiv(n, chosen.tile)
    partial = sums.new_empty(tiles, 2 * k)
    constants = {
        "TILE": chosen.tile,
        "WORKING": tl.float64 if wide else tl.float32,
        "num_warps": chosen.warps,
    } | OPTIONS
    words = masks.shape[1]
    with on_device(base):
        if k <= UNROLLED or len(dtypes) > 1:
            elect_unrolled[(tiles,)](base, tuple(models), unified, masks, partial, n, words, K=k, **constants)
        else:
            addresses = [m.data_ptr() for m in models]
            table = torch.tensor(addresses, dtype=torch.int64, device=base.device)
            aligned = 16 if all(a % 16 == 0 for a in addresses) else models[0].element_size()
            element = ELEMENTS[models[0].dtype]
            elect_looped[(tiles,)](
                base, table, unified, masks, partial, n, words, k, ELEMENT=element, ALIGNED=aligned, **constants
            )
        add_tile_sums(partial, sums.view(-1), BLOCK // chosen.tile)
