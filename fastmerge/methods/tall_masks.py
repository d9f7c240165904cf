"""TALL-masks (Wang et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from ._declaration import Statistics, of_models, per_model
from ._modulators import TaskVectorMethod


class TallMasks(TaskVectorMethod):
    """base + mask_k ⊙ τ_m for task k: τ_m = scale · Σ w_k τ_k, mask_k = |τ_k| ≥ λ_k · |τ_m − τ_k|."""

    name = "tall_masks"
    source = "Wang et al. 2024, arXiv 2405.07813, Eq. 3"
    by_model: ClassVar[tuple[str, ...]] = ("weights", "threshold")

    threshold: per_model(0, 1e9) = Field(default=0.4, description="λ_k: the less, the more a task keeps")  # type: ignore[valid-type]
    modulators: Literal[True] = Field(default=True, description="masks are the result; always true")

    def masking(self, models: Sequence[str]) -> dict[str, Any]:
        return {"tall": of_models(self.threshold, models)}

    def results(self, statistics: Sequence[Statistics]) -> dict[str, list[float]]:
        return {"rescalers": [1.0] * statistics[-1].models}
