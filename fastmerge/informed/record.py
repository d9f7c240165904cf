"""What runs of these methods tell, as JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..fw.record import RunRecord


class Step(BaseModel):
    """One step: the `loss` on its batches before it (and each task's), and `seconds` by what they were spent on."""

    model_config = ConfigDict(extra="forbid")

    number: int
    loss: float
    losses: dict[str, float]
    seconds: dict[str, float] = {}


class AdaMergingRecord(RunRecord):
    """A run of AdaMerging: `coefficients` are the λ of the pool, by row."""

    method = "ada_merging"
    title = "AdaMerging"
    reference = "Yang et al. 2024, arXiv 2310.02575"

    format: Literal["fastmerge.ada_merging"] = "fastmerge.ada_merging"
    coefficients: list[list[float]]
    steps: list[Step] = Field(default_factory=list)
    ended: Literal["steps", "callback"] | None = None


class MeanRecord(RunRecord):
    """A mean of the pool's members, no other model having part in it: `coefficients` are their weights, in one row."""

    coefficients: list[list[float]]
    steps: list[Step] = Field(default_factory=list)

    @property
    def pool(self) -> list[str]:
        return self.candidates


class FisherRecord(MeanRecord):
    """A Fisher merge."""

    method = "fisher"
    title = "Fisher-weighted averaging"
    reference = "Matena & Raffel 2022, arXiv 2111.09832"

    format: Literal["fastmerge.fisher"] = "fastmerge.fisher"


class RegMeanRecord(MeanRecord):
    """A RegMean merge."""

    method = "regmean"
    title = "RegMean"
    reference = "Jin et al. 2023, arXiv 2212.09849"

    format: Literal["fastmerge.regmean"] = "fastmerge.regmean"
