"""Memory for what is made of a whole tensor on the way to a result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import dispatch

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def scratch(like: Tensor, dtype: torch.dtype) -> Tensor:
    """As many numbers of any value, 1-D; on the CPU in memory that tensors before had, where the native backend is."""
    native = dispatch.load("native")
    if like.device.type != "cpu" or isinstance(native, str):
        return like.new_empty(like.numel(), dtype=dtype)
    taken: Tensor = native.pages.take(like.numel(), dtype)
    return taken


def zeros(like: Tensor, dtype: torch.dtype) -> Tensor:
    """As many zeros, 1-D, not to be written to: there they take no memory."""
    native = dispatch.load("native")
    if like.device.type != "cpu" or isinstance(native, str):
        return like.new_zeros(like.numel(), dtype=dtype)
    shared: Tensor = native.pages.zeros(like.numel(), dtype)
    return shared
