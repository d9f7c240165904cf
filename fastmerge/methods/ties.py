"""TIES-Merging: trim, elect sign & merge (Yadav et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from ._declaration import Pass, Statistics, Subject
from ._quantiles import local_ranks, passes
from ._sparse import TrimmedMethod, VotingMethod

PRESETS = {"paper": {"density": 0.2, "scope": "global", "vote": "unweighted", "merge": "mean"}}


class TIES(TrimmedMethod, VotingMethod):
    """base + scale · the mean of what agrees with the elected sign, of each task vector's largest magnitudes."""

    name = "ties"
    source = "Yadav et al. 2023, arXiv 2306.01708"

    preset: Literal["paper"] | None = Field(
        default=None, description="paper: density 0.2, global, unweighted vote, mean"
    )
    scope: Literal["tensor", "global"] = Field(
        default="tensor", description="trim tensor by tensor, or the whole task vector"
    )
    merge: Literal["sum", "mean", "weighted_mean"] = Field(
        default="weighted_mean", description="what agrees is summed, or divided by its number or weights"
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        preset = PRESETS.get(str(values.get("preset")), {}) if isinstance(values, Mapping) else {}
        return preset | values

    @property
    def per_tensor(self) -> frozenset[str]:  # type: ignore[override]
        varying = TrimmedMethod.per_tensor
        return varying - {"density"} if self.scope == "global" else varying

    def ranks(self, subject: Subject, models: Sequence[str], earlier: Sequence[Statistics]) -> list[list[int]]:
        if self.scope == "tensor":
            return super().ranks(subject, models, earlier)
        return [[0, rank] for rank in local_ranks(subject.name, self.densities(models), earlier)]

    def passes(self, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        merging = super().passes(models, wide)
        return (*passes(self.densities(models), wide), *merging) if self.scope == "global" else merging
