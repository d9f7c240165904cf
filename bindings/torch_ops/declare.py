"""How an op becomes torch's."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef  # type: ignore[attr-defined]  # where torch documents it

from ... import ops


def operator(signature: str) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Declares `torch.ops.fastmerge.<signature>`, whose arguments marked with ! are changed in place."""
    name, schema = signature.split("(", 1)
    mutated = re.findall(r"!\) (\w+)", schema)
    custom = torch.library.custom_op(f"fastmerge::{name}", mutates_args=mutated, schema=f"({schema}")

    def declared(function: Callable[..., Any]) -> CustomOpDef:
        op = custom(function)
        op.__doc__ = f"torch.ops.fastmerge.{signature}\n\nAs fastmerge.ops.{name}: {inspect.getdoc(getattr(ops, name))}"
        return op

    return declared


def apart(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Results that share no memory, as torch wants them of an operator: fastmerge's sums are rows of one tensor."""
    return tuple(tensor.clone() for tensor in tensors)


def sums(like: Tensor, *shape: int) -> Tensor:
    """The fake of a sum."""
    return like.new_empty(shape, dtype=torch.float64)


def count(like: Tensor) -> Tensor:
    """The fake of a number of elements."""
    return like.new_empty((), dtype=torch.int64)
