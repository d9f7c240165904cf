"""Experts that describe no elements of a tensor: refused, with the tensor as it was."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

N = 65_536 + 100
COUNTS = {"too few": [2, 1], "negative": [5, -1], "too many": [2, 3], "of another tensor": [4]}


def check_misfits(op: str, backend: object, device: str) -> int:
    """Each of them, through a backend's own functions; none for ops that take no experts."""

    def expert(counts: list[int], offsets: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        where = torch.tensor(offsets).to(torch.uint16)
        return (torch.tensor(counts, dtype=torch.int32).to(device), where.to(device), torch.ones(4, device=device))

    fit = expert([2, 2], [0, 65_535, 0, 99])
    misfits = [expert(counts, [0, 9, 1, 2]) for counts in COUNTS.values()] + [expert([2, 2], [0, 9, 1, 100])]
    calls: dict[str, Callable[..., bool]] = {
        "gather": lambda theta, counts, offsets, values: backend.gather(theta, counts, offsets, values),  # type: ignore[attr-defined]
        "scatter": lambda theta, *expert: backend.scatter(theta, [fit, expert]),  # type: ignore[attr-defined]
        "scatter_add": lambda theta, *expert: backend.scatter_add(theta, *expert, 0.5),  # type: ignore[attr-defined]
    }
    if op not in calls:
        return 0
    for misfit in misfits:
        theta = torch.zeros(N, device=device)
        assert not calls[op](theta, *misfit), f"{op} takes {misfit}"
        assert not theta.any(), f"{op} changes the tensor"
        assert misfit[2].eq(1).all(), f"{op} changes the values"
        if op == "scatter":
            jobs = [(torch.zeros(N, device=device), experts) for experts in ([fit], [fit, misfit], [fit])]
            assert backend.scattering(jobs) is None, f"scattering takes {misfit}"  # type: ignore[attr-defined]
            assert not any(theta.any() for theta, _ in jobs), "scattering changes a tensor"
    assert calls[op](torch.zeros(N, device=device), *fit)
    return len(misfits)
