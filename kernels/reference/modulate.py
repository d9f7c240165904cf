"""EMR-Merging's masking and rescaling of the unified task vector (Huang et al. 2024, Eq. 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from .numeric import narrow, working_dtype
from .unpack_bits import unpack_bits


def modulate(base: Tensor, unified: Tensor, mask: Tensor, scale: float, out: Tensor) -> None:
    """out = base + scale · mask ⊙ unified. base, unified, out: [N]; mask: uint8 [ceil(N/8)]."""
    dtype = working_dtype([base, unified])
    on = torch.empty(base.shape, dtype=torch.bool, device=base.device)
    unpack_bits(mask, on)
    delta = torch.where(on, unified.to(dtype), 0)
    out.copy_(narrow(base.to(dtype) + torch.tensor(scale, dtype=dtype) * delta, out.dtype))
