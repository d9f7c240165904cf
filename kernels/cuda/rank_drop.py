"""Random drops by the rank of a magnitude in its row: rows sorted by torch, then one kernel of words and thresholds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.numeric import task_vectors
from .enqueue import enqueue
from .kept import philox
from .launch import on_device, upload
from .numeric import store_bits
from .settings import settings

SLAB = 1 << 24  # elements sorted together


@triton.jit
def _drop(ranks, thresholds, key, mask, start, n, begin, FULL: tl.constexpr, TILE: tl.constexpr):
    offsets = begin + tl.arange(0, TILE)
    rank = tl.load(ranks + offsets) if FULL else tl.load(ranks + offsets, mask=offsets < n, other=0)
    kept = philox(start + begin, tl.load(key), TILE).to(tl.int64) >= tl.load(thresholds + rank)
    store_bits(mask, begin, kept & (offsets < n), n, FULL, TILE)


@triton.jit(do_not_specialize=["start"])
def rank_drop_tile(ranks, thresholds, key, mask, start, n, TILE: tl.constexpr):
    """Bits of n elements from `start` on, whose ranks in their rows are given (int32); key: int64."""
    begin = tl.program_id(0).to(tl.int64) * TILE
    if begin + TILE <= n:
        _drop(ranks, thresholds, key, mask, start, n, begin, True, TILE)
    else:
        _drop(ranks, thresholds, key, mask, start, n, begin, False, TILE)


def rank_drop(
    base: Tensor,
    models: Sequence[Tensor],
    columns: int,
    keys: Sequence[int],
    thresholds: Sequence[Tensor],
    start: int,
    stop: int,
    masks: Tensor,
) -> None:
    """As the reference."""
    if start == stop:
        return
    rows = slice(start // columns * columns, -(-stop // columns) * columns)
    signed = torch.tensor([key - (key >> 63 << 64) for key in keys], dtype=torch.int64)
    device_keys, chosen = upload(signed, base.device), settings(4)
    wide = any(t.dtype == torch.float64 for t in (base, *models))
    with on_device(base):
        for k, model in enumerate(models):
            ranks = _ranks(base[rows], model[rows], columns, wide)[start - rows.start : stop - rows.start]
            enqueue(
                rank_drop_tile, (-(-len(ranks) // chosen.tile), 1, 1), ranks, thresholds[k],
                device_keys[k:], masks[k], start, len(ranks), TILE=chosen.tile, num_warps=chosen.warps,
            )  # fmt: skip


def _ranks(base: Tensor, model: Tensor, columns: int, wide: bool) -> Tensor:
    """The rank of each element in its row, the smallest magnitude's being 0: int32, 1-D."""
    if columns == 1:
        return torch.zeros(model.numel(), dtype=torch.int32, device=model.device)
    ranks = torch.empty(model.numel(), dtype=torch.int32, device=model.device)
    places = torch.arange(columns, dtype=torch.int32, device=model.device)
    step = max(1, SLAB // columns) * columns
    for first in range(0, model.numel(), step):
        part = slice(first, first + step)
        (tau,) = task_vectors(base[part].double() if wide else base[part], [model[part]])
        order = torch.sort(_keys(tau).view(-1, columns), stable=True).indices
        ranks[part].view(-1, columns).scatter_(1, order, places.expand_as(order))
    return ranks


def _keys(tau: Tensor) -> Tensor:
    """The bits of |τ|, of every NaN those of the quiet one, in an integer no wider than they are."""
    size = tau.abs()
    size = torch.where(size.isnan(), torch.nan, size)
    return size.view(torch.int64 if size.dtype == torch.float64 else torch.int32)
