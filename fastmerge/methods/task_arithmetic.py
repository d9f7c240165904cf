"""Task arithmetic (Ilharco et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pydantic import Field

from ._declaration import Finite, NormalizedMethod
from ._modulators import TaskVectorMethod


class TaskArithmetic(TaskVectorMethod, NormalizedMethod):
    """base + scale · Σ w_k τ_k, divided by Σ w_k where `normalize`."""

    name = "task_arithmetic"
    source = "Ilharco et al. 2023, arXiv 2212.04089"

    per_tensor = frozenset({"weights", "scale"})

    scale: Finite = Field(1.0, description="λ, the factor of the merged task vector")

    def merger(self, models: Sequence[str]) -> Callable[..., Any]:
        from .. import ops

        weights = self.weights_of(models)
        return partial(ops.combine, weights=weights, scale=self.scale, normalize=self.normalize)
