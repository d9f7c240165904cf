"""TSV-Merge: task singular vectors, made orthogonal between tasks (Gargiulo et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from pydantic import Field

from ._declaration import exact
from ._singular import SingularMethod, leading, side_by_side

if TYPE_CHECKING:
    from torch import Tensor


class TSVM(SingularMethod):
    """base + scale · U Σ Vᵀ of each matrix, U and V the tasks' leading singular vectors, whitened together.

    Each of K task vectors keeps the fraction `rank` (1 / K by default) of its singular triplets, but none that is zero.
    Their left vectors side by side are replaced by the nearest orthogonal ones (the polar factor), so are the right
    ones; directions that they have twice, as those of equal models, count once. Other tensors get scale · the mean of
    the task vectors.
    """

    name = "tsvm"
    source = "Gargiulo et al. 2025, arXiv 2412.00081, Section 4.2, Algorithm 1"
    per_tensor = SingularMethod.per_tensor | {"rank"}

    rank: float | None = Field(
        default=None, gt=0, le=1, description="fraction of singular vectors kept; 1 / K by default"
    )

    def merge_matrix(self, base: Tensor, models: Sequence[Tensor], shape: tuple[int, int]) -> Tensor:
        from .. import ops

        kept = max(1, int(min(shape) * (Fraction(1, len(models)) if self.rank is None else exact(self.rank))))
        left, sigma, right = side_by_side([leading(ops.delta_sum(base, [m]).view(shape), kept) for m in models])
        return (left * sigma) @ right.T
