"""Masks as one bit an element."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_bits(mask: Tensor, out: Tensor) -> None:
    """Bit i of byte j of out is element 8j + i of mask; the last byte is padded with zeros.

    mask: bool [N]; out: uint8 [ceil(N/8)].
    """
    bits = torch.zeros(out.numel() * 8, dtype=torch.uint8, device=mask.device)
    bits[: mask.numel()] = mask
    place = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=mask.device)
    out.copy_((bits.view(-1, 8) * place).sum(1, dtype=torch.uint8))
