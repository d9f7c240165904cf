"""Many tensors in one launch, or made ready together: each has the bits that a call of its own gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fastmerge.kernels import cuda
from tensors import BF16, F16, F32, F64, assert_same_bits, expert_of, make
from torch import Tensor

from fastmerge import ops
from fastmerge.errors import InputError


def job(op: str, n: int, k: int, dtype: torch.dtype, device: str) -> tuple[Any, ...]:
    """An op's arguments for tensors of n elements, in memory that nothing has been written to."""
    base, *models = (make(n, dtype, seed=31 * i + n, special=n > 8).to(device) for i in range(k + 1))
    masks = torch.full((k, ops.packed_bytes(n)), 165, dtype=torch.uint8, device=device)
    sums = torch.full((4, k), 0.25, dtype=torch.float64, device=device)
    weights = [0.3 + 0.17 * i + n / 7 for i in range(k)]
    if op == "elect":
        return base, models, torch.empty_like(base), masks, sums[:2]
    if op == "modulate":
        return base, models[0], masks[0], 1.3 + n, torch.empty_like(base)
    if op == "moments":
        return base, models, sums, torch.ones(k, dtype=torch.int64, device=device)
    if op == "delta_sum":
        return base, models, weights, torch.empty_like(base, dtype=torch.float32)
    drop = [(i + n, 1 << 30) for i in range(k)]
    return base, models, weights, 1.0, 0.7, "weighted", False, (None, drop, masks), 0, torch.empty_like(base)


def outputs(op: str, arguments: tuple[Any, ...]) -> list[Tensor]:
    return {"elect": arguments[2:], "moments": arguments[2:]}.get(op, arguments[-1:])  # type: ignore[return-value]


def check_batches(op: str, device: str) -> int:
    """Tensors of several sizes, numbers of models and dtypes; no case for ops that take one tensor alone."""
    many = getattr(cuda, f"{op}_many", None)
    if many is None:
        return 0
    forms = [(n, k, BF16) for n in (1025, 0, 7, 1025) for k in (2, 9)] + [(513, 2, F32), (66_001, 2, BF16)]
    jobs, alone = ([job(op, n, k, dtype, device) for n, k, dtype in forms] for _ in range(2))
    found = many(jobs)
    expected = [getattr(cuda, op)(*arguments) for arguments in alone]
    assert found is None or found() == [returned() for returned in expected]
    for form, a, b in zip(forms, jobs, alone, strict=True):
        for x, y in zip(outputs(op, a), outputs(op, b), strict=True):
            assert_same_bits(x.cpu(), y.cpu(), f"{op}_many {form}")
    return len(forms)


def modulations(device: str = "cpu") -> list[tuple[Tensor, Tensor, Tensor, float, Tensor]]:
    """What switches an EMR artefact's tensors: of two dtypes, which are two launches."""
    found = []
    for i, (n, dtype) in enumerate([(5000, BF16), (70_000, BF16), (1, BF16), (3001, F32), (0, F32)]):
        base, unified = (make(n, dtype, seed=i + j, special=False).to(device) for j in (0, 10))
        mask = ops.pack_bits(unified > 0)
        found.append((base, unified, mask, 0.5 + i, torch.empty_like(base)))
    return found


def check_modulation(device: str, backend: str | None = None) -> int:
    """modulate of all tensors, made ready once, then done twice; `device` is where they are."""
    given = modulations(device)
    switch = ops.modulation(given, backend=backend)
    for _ in range(2):
        for *_, out in given:
            out.fill_(torch.nan)
        switch()
        for base, unified, mask, scale, out in given:
            own = ops.modulate(base.cpu(), unified.cpu(), mask.cpu(), scale, backend="reference")
            assert_same_bits(out.cpu(), own, f"modulation {base.dtype} n={base.numel()}")
    return len(given)


def scatters(device: str = "cpu") -> list[tuple[Tensor, list[ops.Expert]]]:
    """Tensors and experts of them, of which a later one has some elements of an earlier one."""
    forms = (5000, BF16), (70_000, BF16), (3, F32), (66_001, F64), (1, F16), (0, BF16)
    thetas = [make(n, dtype, seed=n, special=n > 8) for n, dtype in forms]
    experts = [[expert_of(theta > least, least * theta) for least in (-1.0, 0.5)] for theta in thetas]
    return [
        (theta.to(device), [ops.Expert(*(part.to(device) for part in expert)) for expert in own])
        for theta, own in zip(thetas, experts, strict=True)
    ]


def check_scattering(device: str, backend: str | None = None) -> int:
    """scatter into all tensors, made ready once, then done twice; experts that do not fit are refused."""
    given, expected = scatters(device), scatters()
    switch = ops.scattering(given, backend=backend)
    for value in (0, 0.25):
        switch()
        for (theta, _), (own, experts) in zip(given, expected, strict=True):
            ops.scatter(own, experts, backend="reference")
            assert_same_bits(theta.cpu(), own, f"scattering {theta.dtype} n={theta.numel()}")
            theta.fill_(value)
            own.fill_(value)
    theta, (expert, _) = given[1]
    with pytest.raises(InputError, match="counts and offsets are not those of"):
        ops.scattering([given[0], (theta, [expert._replace(counts=expert.counts - 1)])], backend=backend)()
    return len(given)
