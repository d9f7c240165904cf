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

from .numeric import HEAD, INTERPRETED, load_bits, number, pointer

Window = tuple[float, int, float, int]  # magnitude and index of the top cut, then of the bottom one
Drop = tuple[int, int]  # key and threshold
NO_TOP = (float("inf"), 0)  # the cut that nothing is above
Kept = tuple[Sequence[Window] | None, Sequence[Drop] | None, Tensor | None]  # trim, drop, keep


@triton.jit
def _product(x, FACTOR: tl.constexpr):
    """The high and the low half of x · FACTOR, by one instruction."""
    if INTERPRETED:
        return tl.umulhi(x, FACTOR), x * FACTOR
    return tl.inline_asm_elementwise(
        "{ .reg .b64 p; mul.wide.u32 p, $2, $3; mov.b64 {$1, $0}, p; }",
        "=r,=r,r,r",
        [x, FACTOR],
        dtype=(tl.uint32, tl.uint32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def philox(start, key, TILE: tl.constexpr):
    """The words of elements start … start + TILE, start a multiple of 4: uint32 [TILE]. A counter gives four words.

    Philox-4x32-10 as tl.philox has it, but that the halves of a product come from one instruction.
    """
    counter = start // 4 + tl.arange(0, TILE // 4)
    a, b = (counter & 0xFFFFFFFF).to(tl.uint32), (counter >> 32).to(tl.uint32)
    c, d = tl.zeros([TILE // 4], tl.uint32), tl.zeros([TILE // 4], tl.uint32)
    first, second = (key & 0xFFFFFFFF).to(tl.uint32), (key >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        high_a, low_a = _product(a, 0xD2511F53)
        high_c, low_c = _product(c, 0xCD9E8D57)
        a, b, c, d = high_c ^ b ^ first, low_c, high_a ^ d ^ second, low_a
        first = tl.add(first, 0x9E3779B9, sanitize_overflow=False)
        second = tl.add(second, 0xBB67AE85, sanitize_overflow=False)
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def _place(slot, offset):
    """Which element of the tensor that is launched over has a cut's index."""
    return tl.load(slot) - offset


@triton.jit
def whole_sided(row, first, models, start, K: tl.constexpr, TRIM: tl.constexpr, SPAN: tl.constexpr):
    """Whether no index of the cuts of K models, from the first on, divides a program's elements, as but one program of
    a tensor is divided by each."""
    whole = tl.full([], True, tl.int1)
    if TRIM != "none":
        for k in tl.static_range(K):
            for cut in tl.static_range(0 if TRIM == "both" else 1, 2):
                ahead = _place(row + HEAD + (4 + 2 * cut) * models + first + k, tl.load(row + 6)) - start
                whole = whole & ((ahead <= 0) | (ahead >= SPAN))
    return whole


@triton.jit
def _reach(cut, ahead, WORKING: tl.constexpr):
    """Of elements on one side of a cut's index, the largest magnitude that is beneath the cut: the cut's own, or, where
    the index is ahead, the next smaller."""
    word: tl.constexpr = tl.int32 if WORKING == tl.float32 else tl.int64
    smaller = (cut.to(word, bitcast=True) - 1).to(WORKING, bitcast=True)
    return tl.where(ahead <= 0, cut, tl.where(cut == 0, -1.0, smaller))


@triton.jit
def selection(
    row, k, models, start, n, SIDED: tl.constexpr, TRIM: tl.constexpr, DROP: tl.constexpr, KEEP: tl.constexpr,
    WORKING: tl.constexpr,
):  # fmt: skip
    """What kept_elements asks of model k, read once for all of a program's elements, which begin at `start`: cuts and
    their indices' places, or what they reach to where the program is known to be SIDED; the offset, key and threshold
    of drops; the address of the masks."""
    fields, offset = row + HEAD + 3 * models + k, tl.load(row + 6)
    top, top_place, bottom, bottom_place, key, threshold, keep = 0, 0, 0, 0, 0, 0, 0  # older Triton returns no None
    if TRIM != "none":
        bottom, bottom_place = number(fields + 2 * models, WORKING), _place(fields + 3 * models, offset)
        if TRIM == "both":
            top, top_place = number(fields, WORKING), _place(fields + models, offset)
        if SIDED:
            bottom = _reach(bottom, bottom_place - start, WORKING)
            if TRIM == "both":
                top = _reach(top, top_place - start, WORKING)
    if DROP != "none":
        key, threshold = tl.load(fields + 4 * models), tl.load(fields + 5 * models)
    if KEEP:
        keep = pointer(row + 5, tl.uint8, False) + k * ((n + 7) // 8)
    return top, top_place, bottom, bottom_place, offset, key, threshold, keep


@triton.jit
def _trimmed(
    top, top_place, bottom, bottom_place, tau, start, SIDED: tl.constexpr, TRIM: tl.constexpr, TILE: tl.constexpr
):
    """Which elements are above the top cut or below the bottom one."""
    size, at = tl.abs(tau), tl.arange(0, TILE)  # counted in 32 bits
    if SIDED:
        trimmed = size <= bottom
        if TRIM == "both":
            trimmed = trimmed | (size > top)
    else:
        last = at >= tl.minimum(tl.maximum(bottom_place - start, 0), TILE).to(tl.int32)
        trimmed = (size < bottom) | ((size == bottom) & last)
        if TRIM == "both":
            first = at < tl.minimum(tl.maximum(top_place - start, 0), TILE).to(tl.int32)
            trimmed = trimmed | (size > top) | ((size == top) & first)
    return trimmed


@triton.jit
def kept_elements(
    chosen, tau, start, n, FULL: tl.constexpr, SIDED: tl.constexpr, TRIM: tl.constexpr, DROP: tl.constexpr,
    KEEP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """bool [TILE]: whether each element of a model, of which `chosen` is its selection, takes part. NaN is neither
    above nor below a cut."""
    top, top_place, bottom, bottom_place, offset, key, threshold, keep = chosen
    on = tl.full([TILE], True, tl.int1)
    if TRIM != "none":
        on = _trimmed(top, top_place, bottom, bottom_place, tau, start, SIDED, TRIM, TILE) == 0
    if DROP != "none":
        on = on & (philox(offset + start, key, TILE) >= (threshold & 0xFFFFFFFF).to(tl.uint32))
        if DROP == "all":
            on = on & (threshold <= 0xFFFFFFFF)
    if KEEP:
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


def parts(kept: Kept) -> dict[str, str | bool]:
    """Which parts a selection has, as kernels are told: TRIM "none", "bottom" or "both" cuts, DROP "none", "some" or of
    some model "all", and whether to KEEP by masks."""
    trim, drop, keep = kept
    cuts = "both" if any((top, index) != NO_TOP for top, index, *_ in trim or ()) else "bottom"
    drops = "all" if any(threshold > 0xFFFFFFFF for _, threshold in drop or ()) else "some"
    return {
        "TRIM": "none" if trim is None else cuts,
        "DROP": "none" if drop is None else drops,
        "KEEP": keep is not None,
    }


def masks(kept: Kept) -> Tensor | None:
    """The masks, row after row."""
    return None if kept[2] is None else kept[2].contiguous()
