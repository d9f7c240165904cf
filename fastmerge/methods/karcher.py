"""The Karcher mean of the models' directions, a point of the sphere (Karcher 1977)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from ._spanned import SpannedMethod

if TYPE_CHECKING:
    from torch import Tensor


class Karcher(SpannedMethod):
    """The direction from which the arcs to all models sum to zero, with the models' mean length.

    Steps from the mean of directions along the mean of the arcs, until one is shorter than tol. Every step stays in the
    span of the models, so that their inner products tell all of it, in float64.
    """

    name = "karcher"
    source = "arXiv 2603.04972, as in mergekit"
    uses_base = False

    max_iter: int = Field(default=10, ge=0, description="steps at most")
    tol: float = Field(
        default=1e-5, gt=0, le=1, description="the length of a step that is the last; a shorter model is left out"
    )

    def coefficients(self, products: Tensor, models: Sequence[str]) -> Tensor:
        import torch

        norms = products[:, :, 0].diagonal().sqrt()
        valid = (norms > self.tol).to(norms.dtype)
        inverse = torch.where(norms > self.tol, 1 / norms, 0)
        cosines = products[:, :, 0] * inverse[:, None] * inverse[None]
        shares = valid / valid.sum()
        mean = self._mean(cosines, shares)  # as a combination of directions
        return (norms.mean() * mean * inverse)[:, None]

    def _mean(self, cosines: Tensor, shares: Tensor) -> Tensor:
        """The Karcher mean as coefficients of the unit vectors that have these inner products."""
        import torch

        def length(vector: Tensor) -> Tensor:
            return (vector @ cosines @ vector).clamp(min=0).sqrt()

        mean = shares
        if not float(length(mean)) >= self.tol:  # opposite vectors: from the first one on
            mean = torch.nn.functional.one_hot((shares > 0).int().argmax(), len(shares)).to(shares.dtype)
        mean = mean / length(mean)
        for _ in range(self.max_iter):
            dots = (cosines @ mean).clamp(-1, 1)
            angles = dots.acos()
            # No arc is the shortest to an opposite direction, so that it has no part in the step.
            factors = shares * torch.where(angles.sin() < self.tol, 0, angles / angles.sin())
            tangent = factors - (factors * dots).sum() * mean
            step = length(tangent)
            if not float(step) >= self.tol:
                break
            mean = step.cos() * mean + step.sin() / step * tangent
            mean = mean / length(mean)
        return mean
