"""What a tensor has at an expert's elements."""

from __future__ import annotations

from torch import Tensor

from .experts import indices


def gather(theta: Tensor, counts: Tensor, offsets: Tensor, out: Tensor) -> bool:
    """out_j = theta_i for the j-th of the elements i. theta: [N]; out: [k], theta's dtype. False: no such elements."""
    found = indices(theta.numel(), counts, offsets)
    if found is not None:
        out.copy_(theta[found])
    return found is not None
