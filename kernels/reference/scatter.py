"""Experts' values put in the place of a tensor's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .experts import indices


def scatter(theta: Tensor, experts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> bool:
    """theta_i = value for the elements of each (counts, offsets, values), one after the other: the last one's stays.

    theta: [N]; values: [k], theta's dtype. False, with theta unchanged, where one describes no such elements.
    """
    found = [indices(theta.numel(), counts, offsets) for counts, offsets, _ in experts]
    if any(one is None for one in found):
        return False
    for one, (_, _, values) in zip(found, experts, strict=True):
        theta[one] = values
    return True
