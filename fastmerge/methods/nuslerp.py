"""Spherical interpolation of two models, or of their task vectors (Shoemake 1985), as mergekit's NuSLERP has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from ..weights import cancel
from ._declaration import Subject, WeightedMethod
from ._products import Groups
from ._spanned import TaskVectorsOrModels

if TYPE_CHECKING:
    from torch import Tensor

PARALLEL = 1e-6  # the sine of the angle up to which vectors count as parallel


class NuSLERP(TaskVectorsOrModels, WeightedMethod):
    """The point w_1 / (w_0 + w_1) of the way on the arc between two vectors: whole tensors, or every row or column.

    On the straight line where they are parallel or one is zero (mergekit takes zero for orthogonal to all). A row lies
    along the last dimension; nuslerp_row_wise takes vectors along the first, as mergekit's does.
    """

    name = "nuslerp"
    source = "Shoemake 1985, as in mergekit"
    counts = (2, 2)
    per_tensor = frozenset({"weights", "nuslerp_flatten", "nuslerp_row_wise"})

    nuslerp_flatten: bool = Field(default=True, description="take a tensor as one vector")
    nuslerp_row_wise: bool = Field(
        default=False, description="if not flattened: vectors along the first dimension, not the last"
    )

    def problems(self, models: Sequence[str]) -> list[str]:
        problems = super().problems(models)
        if not problems and cancel(self.weights_of(models)):
            problems.append("nuslerp: the weights sum to zero; give others")
        return problems

    def straight(self, models: Sequence[str]) -> list[float]:
        first, second = self.weights_of(models)
        return [first / (first + second), second / (first + second)]

    def groups(self, subject: Subject) -> Groups | None:
        if self.nuslerp_flatten or len(subject.shape) < 2:
            return None
        if self.nuslerp_row_wise:
            return Groups(subject.columns, 1)
        return Groups(subject.numel // subject.shape[-1], subject.shape[-1])

    def coefficients(self, products: Tensor, models: Sequence[str]) -> Tensor:
        import torch

        first, second = self.straight(models)
        lengths = products[0, 0].sqrt() * products[1, 1].sqrt()
        angle = (products[0, 1] / lengths).clamp(-1, 1).acos()
        sine = torch.where(angle.sin() > PARALLEL, angle.sin(), torch.nan)
        return torch.stack([(first * angle).sin() / sine, (second * angle).sin() / sine])
