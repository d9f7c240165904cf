"""Where task vectors differ: what SCE selects by (Wan et al. 2024, Section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .numeric import task_vectors, total


def variance(base: Tensor, models: Sequence[Tensor], out: Tensor) -> int:
    """out = Σ_k (τ_k − mean)² / K, 0 where that is not finite; returns the number of elements that are not 0.

    base, models: [N]; out: [N], the working type.
    """
    taus = task_vectors(base, models)
    mean = total(taus) / len(taus)
    out.copy_((total((tau - mean).square() for tau in taus) / len(taus)).nan_to_num(0, 0))
    return int(out.count_nonzero())
