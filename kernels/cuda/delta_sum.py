"""The weighted sum of task vectors, unrounded: `combine` without base, count and rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .combine import launch_combine


def delta_sum(base: Tensor | None, models: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> None:
    delta_sum_many([(base, models, weights, out)])


def delta_sum_many(jobs: Sequence[tuple[Any, ...]]) -> None:
    """delta_sum of each job's arguments; those of equal dtypes and K take one launch."""
    how = 1.0, 1.0, "sum", True, (None, None, None), 0
    launch_combine([(base, models, weights, *how, out) for base, models, weights, out in jobs], count=False)
