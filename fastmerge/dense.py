"""Tensors whose elements stand in memory where their strides say: what kernels take, and what can be merged."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def computes_itself(tensor: Tensor) -> bool:
    """Whether a tensor is of a kind that answers torch in its own way, as DTensor: its address may lead nowhere."""
    import torch

    return type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def not_dense(tensor: Tensor) -> str | None:
    """Why a tensor is none, and what to do about it."""
    import torch

    kind = type(tensor).__name__
    if torch.nn.parameter.is_lazy(tensor):
        return "has no shape yet; run its lazy module once"
    if kind == "DTensor":
        return "is a DTensor, of which every process has a part; pass what its full_tensor() returns"
    if computes_itself(tensor):
        return f"is a {kind}, which keeps its elements in its own way; pass a plain tensor"
    if tensor.is_nested:
        return "is a nested tensor; pass its parts (unbind()) as tensors of their own"
    if tensor.layout != torch.strided:
        return f"is stored as {str(tensor.layout).removeprefix('torch.').lstrip('_')}; call its to_dense()"
    if tensor.is_meta:
        return "is on the meta device, without values; load them, or make room for them by to_empty()"
    return None
