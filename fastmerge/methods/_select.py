"""Selection by size from what a method has made of a tensor, such as scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

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


def held(numel: int) -> int:
    """Elements that a tensor takes of which cuts are found: its own, and as many as ops.kth_magnitude may list."""
    return numel + numel // 4


def cuts(x: Tensor, ranks: Sequence[int]) -> list[Cut]:
    """The cut of each rank of 0 … N, as of ops.kth_magnitude. x: [N], float32 or float64, none negative."""
    from .. import ops
    from ..ops.memory import zeros

    (found,) = ops.kth_magnitude(zeros(x, x.dtype), [x], [ranks])
    return found


def chosen(mask: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x where the mask is set, elsewhere y: torch.where, which on CPUs takes one element at a time."""
    import torch

    word = torch.int64 if x.dtype == torch.float64 else torch.int32
    bits = mask.to(word).neg_()
    return bits.bitwise_and_(x.view(word) ^ y.view(word)).bitwise_xor_(y.view(word)).view(x.dtype)


def above(x: Tensor, cut: Cut, start: int) -> Tensor:
    """bool: which of these elements, the first of which is number `start`, are above the cut."""
    import torch

    first = max(0, cut.index - start)  # of those that need be larger
    return torch.cat([x[:first] >= cut.magnitude, x[first:] > cut.magnitude])


def packed(x: Tensor, mask: Callable[[slice], Tensor]) -> Tensor:
    """The masks of a 1-D tensor's pieces, packed as by ops.pack_bits."""
    import torch

    from .. import ops

    found = torch.empty(-(-x.numel() // 8), dtype=torch.uint8, device=x.device)
    for own in slabs(x):
        ops.pack_bits(mask(own), out=part(found, own.start, own.stop - own.start))
    return found


def part(masks: Tensor, start: int, numel: int) -> Tensor:
    """Of packed masks those of `numel` elements from `start`, a multiple of 8, on."""
    return masks[start // 8 : -(-(start + numel) // 8)]
