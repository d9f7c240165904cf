"""How kernels are launched: frozen settings from pure functions, testable without a GPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

BLOCK = 65_536  # elements whose float64 sum is formed on its own
UNROLLED = 4  # models up to which task vectors stay in registers; beyond, one kernel takes any number
# Multiplication and addition round separately on every backend; later releases of Triton fuse them unless told not to.
OPTIONS = {"enable_fp_fusion": False}


@dataclass(frozen=True)
class Settings:
    """`tile` elements a program, on `warps` warps: 16 bytes of every 16-bit input a thread."""

    tile: int
    warps: int


def settings(widest: int) -> Settings:
    """Settings for inputs of at most `widest` bytes an element."""
    return Settings(1024, 4) if widest < 8 else Settings(512, 4)


def rejection(capability: tuple[int, int], version: str) -> str | None:
    """Why this GPU with this version of Triton would not give the bits of the reference, or None."""
    release = tuple(int(part) for part in version.split(".")[:2])
    if capability >= (10, 0) and release < (3, 9):
        return f"Triton {version} fuses multiplication and addition on sm_{capability[0]}{capability[1]}; install 3.9"
    if capability < (8, 0):
        return f"sm_{capability[0]}{capability[1]} has no bfloat16; sm_80 is the least"
    return None


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """The tensor's GPU, made current after checking it; nothing in the interpreter. Raises RuntimeError."""
    if tensor.device.type != "cuda":
        return nullcontext()
    reason = rejection(torch.cuda.get_device_capability(tensor.device), triton.__version__)
    if reason:
        raise RuntimeError(reason)
    return torch.cuda.device(tensor.device)
