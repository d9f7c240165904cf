"""Which model's tensor holds the NaN or infinity that a merge has met, and which tensors differ that must not?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn, get_args

import torch
from torch import Tensor

from .. import ops
from ..errors import MergeError
from ..formats.mapping import Inputs
from ..formats.safetensors import limited
from ..methods._declaration import Method
from ..recipe.preflight import TensorPlan
from .stream import Source


def check_finite(tensor: TensorPlan, names: Sequence[str], files: Inputs, chunk: int, method: Method) -> NoReturn:
    """Raise a MergeError that names every model at fault, reading the tensor once more."""
    infos = ([("base", tensor.base)] if tensor.base else []) + list(zip(names, tensor.models, strict=True))
    files.check_unchanged()
    found = []
    for label, info in infos:
        source = Source(info)
        starts = range(0, info.numel, chunk)
        views = (source.read(files, a, min(a + chunk, info.numel)) for a in starts)
        bad = sum(ops.combine(None, [view]).nonfinite for view in views)
        if bad:
            found.append(f"{label} ({bad} of {info.numel} values, {info.file.name})")
    may_pass = "allow" in get_args(type(method).model_fields["nonfinite"].annotation)
    if not found:
        ways = "a wider --dtype, other weights, or nonfinite=allow" if may_pass else "a wider --dtype, or other weights"
        raise MergeError(f"tensor {tensor.name!r}: the result leaves the range of its dtype; choose {ways}")
    otherwise = ", or pass -p nonfinite=allow to merge all the same" if may_pass else ""
    raise MergeError(f"tensor {tensor.name!r}: NaN or infinity in {', '.join(found)}; mend the checkpoint{otherwise}")


def differing(tensors: Sequence[TensorPlan], names: Sequence[str], files: Inputs) -> MergeError:
    """An error that names all integer tensors that differ, reading them once more."""
    files.check_unchanged()
    found = []
    for tensor in (own for own in tensors if own.copy):
        labels = [*(["base"] if tensor.base else []), *names]
        stored = [files.whole(info) for info in ([tensor.base] if tensor.base else []) + list(tensor.models)]
        found += unequal(tensor, labels, stored)
    return MergeError("\n".join(limited(found)))


def unequal(tensor: TensorPlan, labels: Sequence[str], tensors: Sequence[Tensor]) -> list[str]:
    """What to say of an integer tensor that is not the same everywhere."""
    others = [label for label, own in zip(labels, tensors, strict=True) if not torch.equal(tensors[0], own)]
    if not others:
        return []
    return [
        f"tensor {tensor.name!r} ({tensor.dtype}) differs between {labels[0]} and {', '.join(others)}; integer tensors "
        "are not merged and must be equal, or kept per task (--task-specific PATTERN)"
    ]
