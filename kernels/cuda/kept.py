"""Which elements of a model take part in a merge: not trimmed by magnitude, not dropped at random, not masked out.

Of a row: slot 5 the address of the keep masks, slot 6 the index in its tensor of the first element; after the models'
addresses and two fields of an op's own come each model's top magnitude and index, bottom magnitude and index, key and
threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .numeric import HEAD, load_bits, number, pointer

Window = tuple[float, int, float, int]  # magnitude and index of the top cut, then of the bottom one
Drop = tuple[int, int]  # key and threshold
Kept = tuple[Sequence[Window] | None, Sequence[Drop] | None, Tensor | None]  # trim, drop, keep


@triton.jit
def philox(start, key, TILE: tl.constexpr):
    """The words of elements start … start + TILE, start a multiple of 4: uint32 [TILE]. A counter gives four words."""
    counter = start // 4 + tl.arange(0, TILE // 4)
    zero = tl.zeros([TILE // 4], tl.uint32)
    low, high = (counter & 0xFFFFFFFF).to(tl.uint32), (counter >> 32).to(tl.uint32)
    a, b, c, d = tl.philox(key, low, high, zero, zero)
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def _ahead(slot, row, start):
    """How many elements from `start` on are before the index in the slot, or less than none."""
    return tl.load(slot) - (tl.load(row + 6) + start)


@triton.jit
def whole_sided(row, start, K: tl.constexpr, TRIM: tl.constexpr, TILE: tl.constexpr):
    """Whether no index of K models' cuts divides the tile, as but one tile of a tensor is divided by each."""
    whole = tl.full([], True, tl.int1)
    if TRIM:
        for k in tl.static_range(K):
            for cut in tl.static_range(2):
                ahead = _ahead(row + HEAD + 3 * K + k + (1 + 2 * cut) * K, row, start)
                whole = whole & ((ahead <= 0) | (ahead >= TILE))
    return whole


@triton.jit
def _reach(cut, ahead, WORKING: tl.constexpr):
    """Of a tile on one side of a cut's index, the largest magnitude that is beneath the cut: the cut's own, or, where
    the index is ahead, the next smaller."""
    word: tl.constexpr = tl.int32 if WORKING == tl.float32 else tl.int64
    smaller = (cut.to(word, bitcast=True) - 1).to(WORKING, bitcast=True)
    return tl.where(ahead <= 0, cut, tl.where(cut == 0, -1.0, smaller))


@triton.jit
def _trimmed(row, fields, models, tau, start, SIDED: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr):
    """Which elements are above the top cut or below the bottom one."""
    size, top, bottom = tl.abs(tau), number(fields, WORKING), number(fields + 2 * models, WORKING)
    before_top, before_bottom = _ahead(fields + models, row, start), _ahead(fields + 3 * models, row, start)
    if SIDED:
        above = size > _reach(top, before_top, WORKING)
        below = size <= _reach(bottom, before_bottom, WORKING)
    else:
        at = tl.arange(0, TILE)  # counted in 32 bits
        first = at < tl.minimum(tl.maximum(before_top, 0), TILE).to(tl.int32)
        last = at >= tl.minimum(tl.maximum(before_bottom, 0), TILE).to(tl.int32)
        above = (size > top) | ((size == top) & first)
        below = (size < bottom) | ((size == bottom) & last)
    return above | below


@triton.jit
def kept_elements(
    row, k, models, tau, start, n, FULL: tl.constexpr, SIDED: tl.constexpr, TRIM: tl.constexpr, DROP: tl.constexpr,
    KEEP: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """bool [TILE]: whether each element of model k takes part. NaN is neither above nor below a cut.

    SIDED: the tile is known to be whole_sided.
    """
    fields = row + HEAD + 3 * models + k
    on = tl.full([TILE], True, tl.int1)
    if TRIM:
        on = _trimmed(row, fields, models, tau, start, SIDED, TILE, WORKING) == 0
    if DROP:
        threshold = tl.load(fields + 5 * models)
        words = philox(tl.load(row + 6) + start, tl.load(fields + 4 * models), TILE)
        on = on & (words >= (threshold & 0xFFFFFFFF).to(tl.uint32)) & (threshold <= 0xFFFFFFFF)
    if KEEP:
        keep = pointer(row + 5, tl.uint8, False) + k * ((n + 7) // 8)
        on = on & (load_bits(keep, start, n, FULL, TILE) != 0)
    return on


def fields(kept: Kept, models: int) -> list[Sequence[float | int]]:
    """The fields that kept_elements reads: six numbers a model, or none where it looks at masks alone."""
    trim, drop, _ = kept
    if trim is None and drop is None:
        return []
    top, top_index, bottom, bottom_index = zip(*(trim or [(0.0, 0, 0.0, 0)] * models), strict=True)
    keys, thresholds = zip(*(drop or [(0, 0)] * models), strict=True)
    return [[*map(float, top)], top_index, [*map(float, bottom)], bottom_index, keys, thresholds]


def parts(kept: Kept) -> dict[str, bool]:
    """Which parts a selection has, as kernels are told."""
    trim, drop, keep = kept
    return {"TRIM": trim is not None, "DROP": drop is not None, "KEEP": keep is not None}


def masks(kept: Kept) -> Tensor | None:
    """The masks, row after row."""
    return None if kept[2] is None else kept[2].contiguous()
