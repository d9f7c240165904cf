"""The rank of a magnitude in the whole task vector, found by a histogram a pass: each divides the bin that holds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from ._declaration import Block, Pass, Statistics

if TYPE_CHECKING:
    from torch import Tensor

Rounding = Callable[[Fraction], int]
Level = tuple[int, int]  # shift and bits: which bits of the magnitude a pass counts by

NARROW: tuple[Level, ...] = ((20, 11), (10, 10), (0, 10))
WIDE: tuple[Level, ...] = ((52, 11), (39, 13), (26, 13), (13, 13), (0, 13))


def passes(densities: Sequence[Fraction], wide: bool, rounding: Rounding = int) -> tuple[Pass, ...]:
    """The passes after which `local_ranks` knows how the largest `densities` of all elements divide among tensors."""

    def level(number: int, shift: int, bits: int) -> Pass:
        prefixes: list[int] = []

        def count(block: Block, earlier: Sequence[Statistics]) -> None:
            from .. import ops

            assert block.base is not None
            assert block.sums is not None
            if number and not prefixes:
                prefixes.extend(_descend(densities, earlier, rounding)[0])
            counts = ops.magnitude_histogram(
                block.base, block.models, shift=shift, bits=bits, prefixes=prefixes or None, wide=wide
            )
            block.sums += counts.T

        statistic = f"histogram_{'wide' if wide else 'narrow'}" if number == 0 else None
        return Pass(count, rows=1 << bits, statistic=statistic)

    return tuple(level(number, *bits) for number, bits in enumerate(WIDE if wide else NARROW))


def local_ranks(
    tensor: str, densities: Sequence[Fraction], earlier: Sequence[Statistics], rounding: Rounding = int
) -> list[int]:
    """Per model how many elements of the tensor are among the model's density · n largest, n over all tensors.

    Of elements equal to the last one, those of earlier tensors come first.
    """
    _, left, above = _descend(densities, earlier, rounding)
    ranks = []
    for k, (quota, bins) in enumerate(zip(left, above, strict=True)):
        rank = sum(int(found.sums[tensor][chosen + 1 :, k].sum()) for found, chosen in zip(earlier, bins, strict=True))
        equal = {name: int(sums[bins[-1], k]) for name, sums in earlier[-1].sums.items()}
        for name, count in equal.items():
            taken = min(quota, count)
            quota -= taken
            if name == tensor:
                rank += taken
                break
        ranks.append(rank)
    return ranks


def _descend(
    densities: Sequence[Fraction], earlier: Sequence[Statistics], rounding: Rounding
) -> tuple[list[int], list[int], list[list[int]]]:
    """Per model the bits of the magnitude sought, as far as the passes tell, how many elements are still to be taken
    from its bin, and its bin in every pass."""
    import torch

    total = sum(earlier[0].sizes.values())
    left = [rounding(density * total) for density in densities]
    prefixes, bins = [0] * len(left), [[] for _ in left]  # type: list[int], list[list[int]]
    for found in earlier:
        counts = torch.stack(list(found.sums.values())).sum(0)  # [bins, K]
        bits = counts.shape[0].bit_length() - 1
        for k, rank in enumerate(left):
            chosen, left[k] = holding(counts[:, k], rank)
            bins[k].append(chosen)
            prefixes[k] = prefixes[k] << bits | chosen
    return prefixes, left, bins


def holding(counts: Tensor, rank: int) -> tuple[int, int]:
    """The bin that holds the element of this rank, 1 being the largest's, and its rank in the bin. counts: [bins]."""
    reached = counts.flip(0).cumsum(0)  # elements in this bin or a higher one
    chosen = len(counts) - 1 - int((reached < rank).sum())
    return chosen, rank - int(counts[chosen + 1 :].sum())
