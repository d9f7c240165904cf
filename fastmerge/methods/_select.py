"""Selection by size from what a method has made of a tensor, such as scores: as ops.kth_magnitude, without a base."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ._quantiles import NARROW, WIDE, holding

if TYPE_CHECKING:
    from torch import Tensor

    from ..ops import Cut

SLAB = 1 << 18  # elements that are worked on at a time, in cache; a multiple of ops.BLOCK
SLAB_OFF_CPU = 1 << 24  # that other devices have enough to do with


def at_a_time(x: Tensor) -> int:
    """Elements of the tensor that are worked on at a time."""
    return SLAB if x.device.type == "cpu" else SLAB_OFF_CPU


def slabs(x: Tensor) -> Iterator[slice]:
    """The pieces of a 1-D tensor in order."""
    numel, step = x.numel(), at_a_time(x)
    return (slice(start, min(start + step, numel)) for start in range(0, numel, step))


def cuts(x: Tensor, ranks: Sequence[int]) -> list[Cut]:
    """The cut of each rank of 0 … N. x: [N], float32 or float64, none negative."""
    import torch

    from .. import ops

    wide = x.dtype == torch.float64
    prefixes, left, equals = [0] * len(ranks), list(ranks), [0] * len(ranks)
    for level, (shift, bits) in enumerate(WIDE if wide else NARROW):
        counts = torch.zeros(len(ranks), 1 << bits, dtype=torch.int64, device=x.device)
        given = prefixes if level else None
        for own in slabs(x):
            zeros, same = torch.zeros_like(x[own]), [x[own]] * len(ranks)
            ops.magnitude_histogram(zeros, same, shift=shift, bits=bits, prefixes=given, wide=wide, counts=counts)
        for k, rank in enumerate(left):
            chosen, left[k] = holding(counts[k], rank)
            prefixes[k], equals[k] = prefixes[k] << bits | chosen, int(counts[k, chosen])
    word, number = (torch.int64, torch.float64) if wide else (torch.int32, torch.float32)
    magnitudes = torch.tensor(prefixes, dtype=word).view(number).tolist()
    return [
        _cut(x, magnitude, quota, equal) if rank else ops.Cut(math.inf, 0)
        for rank, magnitude, quota, equal in zip(ranks, magnitudes, left, equals, strict=True)
    ]


def _cut(x: Tensor, magnitude: float, quota: int, equal: int) -> Cut:
    """The cut that leaves the first `quota` (1 or more) of `equal` elements of this magnitude above it."""
    from .. import ops

    for own in slabs(x) if quota < equal else ():
        found = (x[own] == magnitude).nonzero()[:, 0]
        if len(found) >= quota:
            return ops.Cut(magnitude, own.start + int(found[quota - 1]) + 1)
        quota -= len(found)
    return ops.Cut(magnitude, x.numel())


def above(x: Tensor, cut: Cut, start: int) -> Tensor:
    """bool: which of these elements, the first of which is number `start`, are above the cut."""
    mask = x > cut.magnitude
    equal = slice(0, max(0, cut.index - start))
    mask[equal] |= x[equal] == cut.magnitude
    return mask
