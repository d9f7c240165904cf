"""Selection by magnitude from a tensor that is made piece by piece and never held whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from ._quantiles import NARROW, WIDE

if TYPE_CHECKING:
    from torch import Tensor

    from ..ops import Cut

SLAB = 1 << 18  # elements that are made at a time, in cache; a multiple of ops.BLOCK

Make = Callable[[slice], "Tensor"]  # the elements of a slice: float32, or float64 in a wide tensor, none negative


def slabs(numel: int) -> Iterator[slice]:
    """The pieces of a tensor in order."""
    return (slice(start, min(start + SLAB, numel)) for start in range(0, numel, SLAB))


def cuts(make: Make, numel: int, ranks: Sequence[int], wide: bool) -> list[Cut]:
    """The cut of each rank of 0 … numel: one reading for every level of a histogram, and one for indices."""
    import torch

    from .. import ops

    prefixes, left, equals = [0] * len(ranks), list(ranks), [0] * len(ranks)
    for level, (shift, bits) in enumerate(WIDE if wide else NARROW):
        counts = None
        for own in slabs(numel):
            made = make(own)
            counts = ops.magnitude_histogram(
                torch.zeros_like(made),
                [made] * len(ranks),
                shift=shift,
                bits=bits,
                prefixes=prefixes if level else None,
                wide=wide,
                counts=counts,
            )
        for k, rank in enumerate(left):
            assert counts is not None
            reached = counts[k].flip(0).cumsum(0)  # elements in this bin or a higher one
            chosen = counts.shape[1] - 1 - int((reached < rank).sum())
            left[k] = rank - int(counts[k, chosen + 1 :].sum())
            prefixes[k], equals[k] = prefixes[k] << bits | chosen, int(counts[k, chosen])
    word, number = (torch.int64, torch.float64) if wide else (torch.int32, torch.float32)
    magnitudes = torch.tensor(prefixes, dtype=word).view(number).tolist()
    return [
        _cut(make, numel, magnitude, quota, equal) if rank else ops.Cut(math.inf, 0)
        for rank, magnitude, quota, equal in zip(ranks, magnitudes, left, equals, strict=True)
    ]


def _cut(make: Make, numel: int, magnitude: float, quota: int, equal: int) -> Cut:
    """The cut that leaves the first `quota` (1 or more) of `equal` elements of this magnitude above it."""
    from .. import ops

    for own in slabs(numel) if quota < equal else ():
        found = (make(own) == magnitude).nonzero()[:, 0]
        if len(found) >= quota:
            return ops.Cut(magnitude, own.start + int(found[quota - 1]) + 1)
        quota -= len(found)
    return ops.Cut(magnitude, numel)


def above(made: Tensor, cut: Cut, start: int) -> Tensor:
    """bool: which of these elements, the first of which is number `start`, are above the cut."""
    mask = made > cut.magnitude
    equal = slice(0, max(0, cut.index - start))
    mask[equal] |= made[equal] == cut.magnitude
    return mask
