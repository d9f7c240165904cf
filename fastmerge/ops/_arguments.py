"""What all ops do with their arguments: check them, flatten them, make room for results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..dense import computes_itself, not_dense
from ..errors import InputError
from .records import MAX_MODELS

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def working_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """What arithmetic is done in: float64 as soon as one input is float64, else float32."""
    import torch

    return torch.float64 if torch.float64 in {t.dtype for t in tensors} else torch.float32


class _Flat:
    """A contiguous stand-in for an output; where the output is not contiguous it is copied there at the end."""

    def __init__(self, tensor: Tensor, shape: tuple[int, ...] = (-1,)) -> None:
        self.tensor, self.flat = tensor, _flat(tensor, shape)

    def __enter__(self) -> Tensor:
        return self.flat

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is None and not self.tensor.is_contiguous():
            self.tensor.detach().copy_(self.flat.view(self.tensor.shape))


def _flat(tensor: Tensor, shape: tuple[int, ...] = (-1,)) -> Tensor:
    """As backends take it: contiguous, in one dimension unless they want it otherwise."""
    own = (tensor.detach() if tensor.requires_grad else tensor).contiguous()
    # A view takes microseconds; longer where it is given a tuple, which is tried as a dtype first.
    return own if own.ndim == len(shape) == 1 else own.view(*shape)


def _flat_all(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [_flat(t) for t in tensors]


def _numbered(models: Sequence[Tensor]) -> dict[str, Tensor]:
    if not 1 <= len(models) <= MAX_MODELS:
        raise InputError(f"1 to {MAX_MODELS} models can be merged, these are {len(models)}")
    return {f"models[{k}]": m for k, m in enumerate(models)}


def _matrix(op: str, name: str, tensor: Tensor) -> tuple[int, int]:
    """Height and width of the matrices that a tensor is made of."""
    if tensor.ndim < 2:
        raise InputError(
            f"{op}: {name} has shape {list(tensor.shape)}, expected matrices [..., H, W]; view a vector as [1, N]"
        )
    return tensor.shape[-2], tensor.shape[-1]


def _empty(like: Tensor, dtype: torch.dtype | None) -> Tensor:
    return like.new_empty(like.shape, dtype=dtype or like.dtype)


def _working(op: str, base: Tensor, models: Sequence[Tensor], out: Tensor | None) -> Tensor:
    """A checked output of the working type: the tensor given, or a new one."""
    wide = working_dtype([base, *models])
    out = _empty(base, wide) if out is None else out
    _check(op, {"base": base, **_numbered(models)}, out=out)
    if out.dtype != wide:
        raise InputError(f"{op}: out must be {wide}, the working type of these inputs, not {out.dtype}")
    return out


def _accumulator(
    given: Tensor | None,
    shape: tuple[int, ...],
    like: Tensor,
    dtype: torch.dtype | None = None,
    name: str = "sums",
) -> Tensor:
    """What a backend adds to: the tensor given, float64 unless said, or zeros."""
    import torch

    dtype = dtype or torch.float64
    if given is None:
        return like.new_zeros(shape, dtype=dtype)
    _check_buffer(name, given, shape, dtype, like.device)
    if not given.is_contiguous():
        raise InputError(f"{name} must be contiguous")
    return given


def _check(op: str, tensors: Mapping[str, Tensor], **written: Tensor) -> None:
    """All tensors have the first one's shape and device, and a dtype that merges. Reports every problem.

    written: outputs, each in the place of an input of its dtype or apart from all.
    """
    for name, tensor in (*tensors.items(), *written.items()):
        if computes_itself(tensor):  # whose addresses no kernel may take
            raise InputError(f"{op}: {name} {not_dense(tensor)}")
    (first, like), *_ = tensors.items()
    shape, device, problems = like.shape, like.device, []
    for name, tensor in (*tensors.items(), *written.items()):
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            problems.append(f"{op}: {name} is {tensor.dtype}, expected bfloat16, float16, float32 or float64")
        if tensor.shape != shape:
            problems.append(f"{op}: {name} has shape {list(tensor.shape)}, {first} has {list(shape)}")
        if tensor.device != device:
            problems.append(f"{op}: {name} is on {tensor.device}, {first} on {device}")
    for name, out in () if problems else written.items():
        shared = ", ".join(_sharing(out, tensors))
        if shared:
            problems.append(f"{op}: {name} shares memory with {shared}, but not element by element")
    if problems:
        raise InputError(problems)


def _sharing(out: Tensor, tensors: Mapping[str, Tensor]) -> list[str]:
    """Of tensors of out's shape those that writing to it would change before they are read."""
    if not out.is_contiguous():
        return []  # a copy is written
    begin, size, found = out.data_ptr(), out.element_size(), []
    end = begin + out.numel() * size if begin else 0  # 0: no memory
    for name, tensor in tensors.items():
        first = tensor.data_ptr()
        over = first < end and begin < first + tensor.nbytes
        if over and (first != begin or tensor.element_size() != size) and tensor.is_contiguous():
            found.append(name)
    return found


def _check_buffer(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device != device:
        raise InputError(
            f"{name} must be {dtype} {list(shape)} on {device}, "
            f"it is {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
        )
