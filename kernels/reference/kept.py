"""Which elements of a model take part in a merge: not trimmed by magnitude, not dropped at random, not masked out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .philox import philox
from .unpack_bits import unpack_bits

Window = tuple[float, int, float, int]  # magnitude and index of the top cut, then of the bottom one
Drop = tuple[int, int]  # key and threshold
Kept = tuple[Sequence[Window] | None, Sequence[Drop] | None, Tensor | None]  # trim, drop, keep


def kept_elements(k: int, tau: Tensor, kept: Kept, offset: int) -> Tensor:
    """bool [N]: whether each element of model k takes part. tau: [N], elements offset … offset + N of a tensor.

    NaN is neither above nor below a cut.
    """
    trim, drop, keep = kept
    index = torch.arange(offset, offset + tau.numel(), device=tau.device)
    on = torch.ones_like(tau, dtype=torch.bool)
    if trim is not None:
        size, (top, top_index, bottom, bottom_index) = tau.abs(), trim[k]
        highest, lowest = torch.tensor(top, dtype=tau.dtype), torch.tensor(bottom, dtype=tau.dtype)
        above = (size > highest) | ((size == highest) & (index < top_index))
        below = (size < lowest) | ((size == lowest) & (index >= bottom_index))
        on &= ~above & ~below
    if drop is not None:
        key, threshold = drop[k]
        on &= philox(index, key) >= threshold
    if keep is not None:
        bits = torch.empty_like(on)
        unpack_bits(keep[k], bits)
        on &= bits
    return on
