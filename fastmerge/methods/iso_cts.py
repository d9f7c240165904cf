"""Iso-CTS: isotropic merging in common and task-specific subspaces (Marczak et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from ._declaration import exact
from ._singular import SingularMethod, leading, side_by_side

if TYPE_CHECKING:
    from torch import Tensor


class IsoCTS(SingularMethod):
    """base + scale · σ̄ U Vᵀ of each matrix: directions of the sum of task vectors, and of what it leaves out of each.

    Of r = min(H, W) directions the fraction `common` are the leading ones of Σ τ_k. Each task fills an equal part of
    the rest with the leading ones of τ_k less its projection on the common left ones; where the rest cannot be shared
    evenly, there are more or fewer common ones. Left vectors side by side are replaced by the nearest orthogonal ones
    (the polar factor), so are right ones; σ̄ is the mean of all these singular values. As in `iso_c`, what is zero has
    no direction, and other tensors get scale · the mean of the task vectors.
    """

    name = "iso_cts"
    source = "Marczak et al. 2025, arXiv 2502.04959, Algorithm 2"
    per_tensor = SingularMethod.per_tensor | {"common"}

    common: float = Field(default=0.8, ge=0, le=1, description="k / r, the fraction of common directions")

    def merge_matrix(self, base: Tensor, models: Sequence[Tensor], shape: tuple[int, int]) -> Tensor:
        from .. import ops

        common, own = self.directions(min(shape), len(models))
        shared = leading(ops.delta_sum(base, models).view(shape), common)
        parts = [shared]
        for model in models:
            tau = ops.delta_sum(base, [model]).view(shape)
            parts.append(leading(tau - shared[0] @ (shared[0].T @ tau), own))
        del shared
        left, sigma, right = side_by_side(parts)
        return (left * sigma.mean().nan_to_num(0.0)) @ right.T

    def directions(self, full: int, models: int) -> tuple[int, int]:
        """How many of `full` directions are common, and how many each task's own."""
        own = min(full // models, round((full - int(full * exact(self.common))) / models))
        return full - own * models, own
