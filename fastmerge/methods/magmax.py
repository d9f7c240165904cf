"""MagMax (Marczak et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pydantic import Field

from ._declaration import Finite
from ._modulators import TaskVectorMethod


class MagMax(TaskVectorMethod):
    """base + scale · the w_k τ_k of largest magnitude per element, the first of equals."""

    name = "magmax"
    source = "Marczak et al. 2024, arXiv 2407.06322"

    per_tensor = frozenset({"weights", "scale"})

    scale: Finite = Field(1.0, description="λ, the factor of the merged task vector")

    def merger(self, models: Sequence[str]) -> Callable[..., Any]:
        from .. import ops

        return partial(ops.combine, weights=self.weights_of(models), scale=self.scale, consensus="max")
