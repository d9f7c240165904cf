"""Barycentric interpolation on a sphere, as mergekit's Multi-SLERP has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from ..weights import cancel
from ._declaration import WeightedMethod
from ._spanned import TaskVectorsOrModels

if TYPE_CHECKING:
    from torch import Tensor


class MultiSLERP(TaskVectorsOrModels, WeightedMethod):
    """The direction of Σ w_k v_k / |v_k|, with the length Σ w_k |v_k|; v_k are models, or task vectors.

    mergekit then follows the mean of the vectors' tangents, which is zero at that point by its choice. Where no
    direction is left (|Σ w_k v_k / |v_k|| < eps: opposite vectors, task vectors all zero) the result is Σ w_k v_k.
    """

    name = "multislerp"
    source = "Goddard 2025, goddard.blog/posts/multislerp-wow-what-a-cool-idea"

    normalize_weights: bool = Field(default=True, description="divide the weights by their sum")
    eps: float = Field(default=1e-8, ge=0, allow_inf_nan=False, description="a shorter mean has no direction")

    def problems(self, models: Sequence[str]) -> list[str]:
        problems = super().problems(models)
        if not problems and self.normalize_weights and cancel(self.weights_of(models)):
            problems.append("multislerp: the weights sum to zero; give others, or normalize_weights=false")
        return problems

    def straight(self, models: Sequence[str]) -> list[float]:
        weights = self.weights_of(models)
        total = sum(weights) if self.normalize_weights else 1.0
        return [weight / total for weight in weights] if len(weights) > 1 else [1.0]

    def coefficients(self, products: Tensor, models: Sequence[str]) -> Tensor:
        import torch

        weights = products.new_tensor(self.straight(models))[:, None]
        norms = products.diagonal().T.sqrt()  # [K, groups]
        units = torch.where(norms > 0, weights / norms, 0)
        length = torch.einsum("jg,jkg,kg->g", units, products, units).clamp(min=0).sqrt()
        direction = units / torch.where(length >= max(self.eps, 1e-300), length, torch.nan)
        return (weights * norms).sum(0) * direction
