"""Memory for what is made of a tensor on the way to a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import dispatch
from ._arguments import working_dtype

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


def widened(base: Tensor, models: Sequence[Tensor]) -> Tensor:
    """Base, as float64 where that is the working type by a model alone: so each single task vector has it, too."""
    wide = working_dtype([base, *models])
    return base if wide == working_dtype([base]) else base.to(wide)
