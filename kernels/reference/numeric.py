"""Arithmetic common to all reference ops: working type, exact rounding, deterministic sums."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

BLOCK = 65_536  # elements whose float64 sum is formed on its own, then added in block order


def working_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """float64 as soon as one input is float64, else float32."""
    return torch.float64 if torch.float64 in {t.dtype for t in tensors} else torch.float32


def task_vectors(base: Tensor | None, models: Sequence[Tensor]) -> list[Tensor]:
    """τ_k = θ_k − θ_pre in the working type; θ_k itself where there is no base."""
    inputs = list(models) if base is None else [base, *models]
    dtype = working_dtype(inputs)
    wide = [m.to(dtype) for m in models]
    return wide if base is None else [m - base.to(dtype) for m in wide]


def total(terms: Iterable[Tensor]) -> Tensor:
    """Their sum, in order."""
    return reduce(add, terms)


def narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round once, to nearest even.

    torch rounds float64 to 16 bits by way of float32, which rounds twice; rounding that first step to odd instead
    (keeping, in the last bit, whether anything was cut off) makes the second step exact.
    """
    if x.dtype != torch.float64 or dtype not in (torch.bfloat16, torch.float16):
        return x.to(dtype)
    near = x.to(torch.float32)
    exact = near.to(torch.float64)
    bits = near.view(torch.int32)
    # Step back towards zero where float32 rounded away from it, then mark the cut in the last bit.
    truncated = bits - (exact.abs() > x.abs()).to(torch.int32)
    odd = torch.where((exact == x) | x.isnan(), bits, truncated | 1)
    return odd.view(torch.float32).to(dtype)


def add_block_sums(total: Tensor, terms: Tensor) -> None:
    """total (0-d float64) += Σ terms: each block summed on its own, block sums added in block order."""
    for block in torch.split(terms.to(torch.float64), BLOCK):
        # Row by row: the sum of a whole block torch would divide among its threads, however many there are.
        rows = torch.nn.functional.pad(block, (0, -block.numel() % 256)).view(-1, 256)
        total += rows.sum(1).sum()
