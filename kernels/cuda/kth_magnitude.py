"""Cuts of given ranks: in one reading where a sample tells about where they are (brackets.py), else by radix select.

That is for small tensors, for float64, and where a bracket turns out not to hold the cut: a histogram of the bits that
are still open at a time. For 31 bits they are three readings, and a fourth for the index; what a step needs to know of
the one before goes by way of the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import brackets
from .launch import BLOCK
from .magnitude import collect, count, equal_to, histogram, is_wide, magnitude_of

FLOAT_DIGITS = (11, 10, 10)  # of keys, the highest bits first
DOUBLE_DIGITS = (11, 13, 13, 13, 13)


def kth_magnitude(
    base: Tensor,
    models: Sequence[Tensor],
    ranks: Sequence[Sequence[int]],
    magnitudes: Tensor,
    indices: Tensor,
) -> None:
    """As the reference."""
    double = any(is_wide(base, model) for model in models)
    wanted = [(k, i) for k, own in enumerate(ranks) for i, rank in enumerate(own) if rank]
    cuts = {(k, i): (torch.inf, 0) for k, own in enumerate(ranks) for i in range(len(own))}
    if not double and brackets.LEAST <= base.numel() <= brackets.MOST:
        found = brackets.cuts(base, [(models[k], ranks[k][i]) for k, i in wanted])
        cuts |= {at: (magnitude_of(cut[0], double), cut[1]) for at, cut in zip(wanted, found, strict=True) if cut}
        wanted = [at for at, cut in zip(wanted, found, strict=True) if cut is None]
    for k in dict.fromkeys(k for k, _ in wanted):
        left = [i for own, i in wanted if own == k]
        model = models[k].double() if double and not is_wide(base, models[k]) else models[k]
        for i, (key, rank) in zip(left, _keys(base, model, [ranks[k][i] for i in left], double), strict=True):
            cuts[k, i] = _cut(base, model, key, rank, double)
    magnitudes.copy_(torch.tensor([m for m, _ in cuts.values()], dtype=torch.float64).view_as(magnitudes))
    indices.copy_(torch.tensor([i for _, i in cuts.values()], dtype=torch.int64).view_as(indices))


def _keys(base: Tensor, model: Tensor, ranks: Sequence[int], wide: bool) -> list[tuple[int, int]]:
    """Of each rank, from 1 on, the key that has it, and its rank among the elements with that key."""
    digits = DOUBLE_DIGITS if wide else FLOAT_DIGITS
    found = [(0, rank) for rank in ranks]  # the bits so far, and the rank among those that share them
    shift = sum(digits)
    for bits in digits:
        shift -= bits
        counts = {
            prefix: _counts(base, model, shift, bits, prefix) for prefix in dict.fromkeys(prefix for prefix, _ in found)
        }
        found = [_step(counts[prefix], bits, prefix, left) for prefix, left in found]
    return found


def _counts(base: Tensor, model: Tensor, shift: int, bits: int, prefix: int) -> Tensor:
    """From the largest bin down, how many magnitudes are in it or above, on the host."""
    counts = torch.zeros(1 << bits, dtype=torch.int64, device=model.device)
    histogram(base, model, shift, bits, prefix, False, counts)
    return counts.cpu().flip(0).cumsum(0)


def _step(counts: Tensor, bits: int, prefix: int, left: int) -> tuple[int, int]:
    place = int(torch.searchsorted(counts, left))
    before = int(counts[place - 1]) if place else 0
    return (prefix << bits) + (1 << bits) - 1 - place, left - before


def _cut(base: Tensor, model: Tensor, key: int, left: int, wide: bool) -> tuple[float, int]:
    """The cut after the `left`-th element of a key."""
    selection = equal_to(key, model.numel())
    counts = count(base, model, selection).cpu()
    sums = counts.cumsum(0)
    block = int(torch.searchsorted(sums, left))
    part = slice(block * BLOCK, (block + 1) * BLOCK)
    offsets = torch.empty(left - int(sums[block] - counts[block]), dtype=torch.uint16, device=model.device)
    values = torch.empty(len(offsets), dtype=torch.float64 if wide else torch.float32, device=model.device)
    collect(base[part], model[part], selection, counts[block : block + 1].to(model.device), offsets, values)
    return magnitude_of(key, wide), block * BLOCK + int(offsets.cpu()[-1]) + 1
