"""What dtypes of files are in torch, and which of torch's tensors could be in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..dense import not_dense
from ..targets import matches
from .safetensors import limited

TORCH_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}
INTEGER_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
}


def dense_problems(state: Mapping[str, Any], label: str, others: Sequence[str] = ()) -> list[str]:
    """Which of a state dict's tensors are not dense, but for those that match the patterns `others`."""
    tensors = [(n, value) for n, value in state.items() if isinstance(value, torch.Tensor) and not matches(n, others)]
    odd = [(name, why) for name, tensor in tensors if (why := not_dense(tensor)) is not None]
    return limited(odd, lambda own: f"{label}: tensor {own[0]!r} {own[1]}")
