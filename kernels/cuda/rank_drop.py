"""Random drops by the rank of a magnitude in its row.

A block of threads has a row to itself (rank_drop.cu). Long rows, of which there are too few for that, are sorted by
torch, and a kernel holds words to the thresholds of their ranks; to the only one, where rows have one column.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.numeric import task_vectors
from . import nvrtc
from .enqueue import enqueue
from .kept import philox
from .launch import on_device, upload
from .magnitude import DTYPES
from .numeric import store_bits
from .settings import settings

SOURCE = "rank_drop.cu"
LONGEST = 1 << 16  # columns of a row that a block of threads has to itself, whose places have 16 bits
SLAB = 1 << 24  # elements sorted together


@triton.jit
def _drop(
    ranks, thresholds, key, mask, start, n, begin, RANKED: tl.constexpr, FULL: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    offsets = begin + tl.arange(0, TILE)
    if RANKED:
        rank = tl.load(ranks + offsets) if FULL else tl.load(ranks + offsets, mask=offsets < n, other=0)
        thresholds += rank
    kept = philox(start + begin, tl.load(key), TILE).to(tl.int64) >= tl.load(thresholds)
    store_bits(mask, begin, kept & (offsets < n), n, FULL, TILE)


@triton.jit(do_not_specialize=["start"])
def rank_drop_tile(ranks, thresholds, key, mask, start, n, RANKED: tl.constexpr, TILE: tl.constexpr):
    """Bits of n elements from `start` on, whose ranks in their rows are given (int32), else all 0; key: int64."""
    begin = tl.program_id(0).to(tl.int64) * TILE
    if begin + TILE <= n:
        _drop(ranks, thresholds, key, mask, start, n, begin, RANKED, True, TILE)
    else:
        _drop(ranks, thresholds, key, mask, start, n, begin, RANKED, False, TILE)


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
    if any(t.dtype == torch.float64 for t in (base, *models)):
        base = base.double()
    drop = _by_rows if 1 < columns <= LONGEST else _by_ranks
    for model, key, limits, mask in zip(models, keys, thresholds, masks, strict=True):
        drop(base, model, columns, key - (key >> 63 << 64), limits, start, stop, mask)


def _by_rows(
    base: Tensor, model: Tensor, columns: int, key: int, thresholds: Tensor, start: int, stop: int, mask: Tensor
) -> None:
    together = 8 // math.gcd(columns, 8)  # rows that end on a byte
    first, last = start // (columns * together), -(-stop // (columns * together))
    sizes = map(ctypes.c_longlong, (base.numel(), columns, together, first))
    part = map(ctypes.c_longlong, (key, start, stop))
    given = [base, model, *sizes, thresholds, _limits_of(thresholds), *part, mask]
    defines = {"BASE": DTYPES[base.dtype], "MODEL": DTYPES[model.dtype]}
    nvrtc.launch(SOURCE, "rank_drop", defines, last - first, given, base)


def _limits_of(thresholds: Tensor) -> Tensor:
    """The least and the largest, and whether they only rise or only fall: int64 [3]."""
    least, most = thresholds.aminmax()
    steps = thresholds.diff()
    ordered = (steps >= 0).all() | (steps <= 0).all()
    return torch.stack([least, most, ordered.to(torch.int64)])


def _by_ranks(
    base: Tensor, model: Tensor, columns: int, key: int, thresholds: Tensor, start: int, stop: int, mask: Tensor
) -> None:
    n, chosen = stop - start, settings(4)
    with on_device(base):
        ranks = thresholds  # of no use
        if columns > 1:
            rows = slice(start // columns * columns, -(-stop // columns) * columns)
            ranks = _ranks(base[rows], model[rows], columns)[start - rows.start : stop - rows.start]
        enqueue(
            rank_drop_tile, (-(-n // chosen.tile), 1, 1), ranks, thresholds,
            upload(torch.tensor([key]), base.device), mask, start, n, RANKED=columns > 1, TILE=chosen.tile,
            num_warps=chosen.warps,
        )  # fmt: skip


def _ranks(base: Tensor, model: Tensor, columns: int) -> Tensor:
    """The rank of each element in its row, the smallest magnitude's being 0: int32, 1-D."""
    ranks = torch.empty(model.numel(), dtype=torch.int32, device=model.device)
    places = torch.arange(columns, dtype=torch.int32, device=model.device)
    step = max(1, SLAB // columns) * columns
    for first in range(0, model.numel(), step):
        part = slice(first, first + step)
        (tau,) = task_vectors(base[part], [model[part]])
        order = torch.sort(_keys(tau).view(-1, columns), stable=True).indices
        ranks[part].view(-1, columns).scatter_(1, order, places.expand_as(order))
    return ranks


def _keys(tau: Tensor) -> Tensor:
    """The bits of |τ|, of every NaN those of the quiet one, in an integer no wider than they are."""
    size = tau.abs()
    size = torch.where(size.isnan(), torch.nan, size)
    return size.view(torch.int64 if size.dtype == torch.float64 else torch.int32)
