"""Calls of the ops that select by magnitude, for the conformance test, and tensors that are hard to select from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensors import BF16, expert_of, make
from torch import Tensor

from fastmerge import ops

Call = Callable[[Tensor, Sequence[Tensor], torch.dtype, str], list[Tensor]]


def ranks_of(n: int) -> list[int]:
    """None, one, some, half, nearly all and all of n elements."""
    return [min(r, n) for r in (0, 1, n // 10, n // 2, n - n // 8, n)]


def cuts(found: list[list[ops.Cut]]) -> list[Tensor]:
    flat = [cut for row in found for cut in row]
    return [torch.tensor([c.magnitude for c in flat], dtype=torch.float64), torch.tensor([c.index for c in flat])]


def moderate(x: Tensor) -> Tensor:
    """Zero in the place of numbers that are no weight of a usual size."""
    return torch.where((x.abs() > 2**-6) & (x.abs() < 3), x, 0)


def near(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Task vectors within some octaves, as those of fine-tuning are, or zero; but one element, which is large."""
    base = moderate(base)
    models = [(base.double() + moderate(m).double() / 64).to(m.dtype) for m in models]
    models[-1][base.numel() // 2 :][:1] = 1000
    return base, models


def magnitude_histogram(base: Tensor, models: Sequence[Tensor], _: torch.dtype, backend: str) -> list[Tensor]:
    """By the highest bits; by lower ones of all magnitudes, and of those that share a frequent prefix; in float64."""
    whole = ops.magnitude_histogram(base, models, backend=backend)
    bits = 63 if ops.working_dtype([base, *models]) == torch.float64 else 31
    frequent = whole.argmax(1).tolist()
    return [
        whole,
        ops.magnitude_histogram(*near(base, models), backend=backend),
        ops.magnitude_histogram(base, models, shift=3, bits=13, backend=backend),
        ops.magnitude_histogram(base, models, shift=bits - 21, bits=10, prefixes=frequent, backend=backend),
        ops.magnitude_histogram(
            base, models, wide=True, counts=base.new_ones(len(models), 2048, dtype=torch.int64), backend=backend
        ),
    ]


def kth_magnitude(base: Tensor, models: Sequence[Tensor], _: torch.dtype, backend: str) -> list[Tensor]:
    return cuts(ops.kth_magnitude(base, models, [ranks_of(base.numel())] * len(models), backend=backend))


def thresholds(columns: int, density: float = 0.5, spread: float = 0.3) -> Tensor:
    """DELLA's: the larger the magnitude, the more rarely it is dropped."""
    rank = torch.arange(columns).double() / max(columns - 1, 1)
    return ((1 - density + spread / 2 - spread * rank) * 2**32).long()


def rank_drop(base: Tensor, models: Sequence[Tensor], _: torch.dtype, backend: str) -> list[Tensor]:
    """In rows and in one row, with thresholds in order and not, of the whole and from the second block; and of single
    elements, which a threshold drops none of, some, or all."""
    n, k = base.numel(), len(models)
    columns = next((c for c in (4096, 257, 64, 9, 7) if n and n % c == 0), 1)
    keys = [2**64 - 1 - 12345678901 * i for i in range(k)]

    def masks(columns: int, *limits: Tensor, **part: int) -> Tensor:
        tables = [limits[i % len(limits)].to(base.device) for i in range(k)]
        return ops.rank_drop(base, models, columns, keys, tables, backend=backend, **part)

    mixed = thresholds(max(n, 1))[torch.randperm(max(n, 1), generator=torch.Generator().manual_seed(1))]
    found = [masks(columns, thresholds(columns)), masks(max(n, 1), mixed)]
    if n > ops.BLOCK:
        found.append(masks(columns, thresholds(columns), start=ops.BLOCK, stop=n - 1))
    alone = [torch.tensor([(0, 1 << 31, 1 << 32)[(i + n) % 3]]) for i in range(3)]
    return [*found, masks(1, *alone, start=ops.BLOCK if n > ops.BLOCK else 0, stop=n - (n > 1))]


def extract_topk(base: Tensor, models: Sequence[Tensor], dtype: torch.dtype, backend: str) -> list[Tensor]:
    """Of every rank, and above a cut between equal magnitudes."""
    n = base.numel()
    experts = [ops.extract_topk(base, models[-1], k, dtype=dtype, backend=backend) for k in ranks_of(n)]
    experts.append(ops.extract_topk(base, models[0], cut=ops.Cut(0.25, n // 3), dtype=dtype, backend=backend))
    return [part.view(torch.int16) if part.dtype == torch.uint16 else part for e in experts for part in e]


def scatter_add(base: Tensor, models: Sequence[Tensor], dtype: torch.dtype, backend: str) -> list[Tensor]:
    theta = models[-1].clone()
    ops.scatter_add(theta, ops.extract_topk(base, models[0], base.numel() // 3, dtype=dtype), -0.7, backend=backend)
    return [theta]


def gather(base: Tensor, models: Sequence[Tensor], _: torch.dtype, backend: str) -> list[Tensor]:
    return [ops.gather(base, expert_of(m > 0.3, base), backend=backend) for m in models]


def scatter(base: Tensor, models: Sequence[Tensor], _: torch.dtype, backend: str) -> list[Tensor]:
    """Experts that overlap."""
    theta = base.clone()
    ops.scatter(theta, [expert_of(m > 0.3, m.to(base.dtype)) for m in models], backend=backend)
    return [theta]


CALLS: dict[str, Call] = {
    f.__name__: f for f in (magnitude_histogram, kth_magnitude, rank_drop, extract_topk, scatter_add, gather, scatter)
}


def mostly(value: float, share: float, n: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    """A base and a model whose task vector is `value` in that share of its elements."""
    generator = torch.Generator().manual_seed(seed)
    base, model = make(n, dtype, seed, special=False), make(n, dtype, seed + 1, special=False)
    same = torch.rand(n, generator=generator) < share
    return torch.where(same, 0, base), torch.where(same, torch.tensor(value, dtype=dtype), model)


HARD: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    "a third at the threshold": lambda n: mostly(1.0, 0.34, n, BF16, 1),
    "a third equal to a long number": lambda n: mostly(0.7, 0.34, n, torch.float32, 1),
    "all equal": lambda n: mostly(0.7, 1.1, n, torch.float32, 1),
    "all zero": lambda n: mostly(0.0, 1.1, n, BF16, 1),
    "all in one bucket": lambda n: (torch.zeros(n), 1 + make(n, torch.float32, 1, special=False).abs() / 64),
    "mostly zero": lambda n: mostly(0.0, 0.9, n, BF16, 1),
    "mostly −0": lambda n: mostly(-0.0, 0.9, n, torch.float64, 1),
    "mostly infinite": lambda n: mostly(torch.inf, 0.6, n, BF16, 1),
    "mostly NaN": lambda n: mostly(torch.nan, 0.6, n, BF16, 1),
    "float64 in one octave": lambda n: (
        torch.zeros(n).double(),
        1 + make(n, torch.float64, 1, special=False).abs() / 128,
    ),
}
