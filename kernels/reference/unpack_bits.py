"""The reverse of pack_bits."""

from __future__ import annotations

import torch
from torch import Tensor


def unpack_bits(packed: Tensor, out: Tensor) -> None:
    """Element 8j + i of out is bit i of byte j of packed. packed: uint8 [ceil(N/8)]; out: bool [N]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed.unsqueeze(1) >> shifts) & 1
    out.copy_(bits.flatten()[: out.numel()].bool())
