"""Breadcrumbs' trim: neither the largest nor the smallest magnitudes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from ._declaration import Subject, exact, of_models, per_model
from ._sparse import TrimmedMethod


class BreadcrumbsMethod(TrimmedMethod):
    """Leaves out the int(gamma · n) largest magnitudes of a tensor and keeps the next int(density · n)."""

    per_tensor = TrimmedMethod.per_tensor | {"gamma"}
    by_model: ClassVar[tuple[str, ...]] = (*TrimmedMethod.by_model, "gamma")

    density: per_model(0, 1) = Field(default=0.9, description="fraction of each task vector that is kept")  # type: ignore[valid-type]
    gamma: per_model(0, 1) = Field(default=0.01, description="fraction of the largest magnitudes that is left out")  # type: ignore[valid-type]

    def problems(self, models: Sequence[str]) -> list[str]:
        problems = super().problems(models)
        if problems:
            return problems
        gammas = [exact(gamma) for gamma in of_models(self.gamma, models)]
        pairs = zip(models, self.densities(models), gammas, strict=True)
        return [
            f"{self.name}: density {float(d):g} and gamma {float(g):g} of {model} make more than 1; lower one of them"
            for model, d, g in pairs
            if d + g > 1
        ]

    def tops(self, subject: Subject, models: Sequence[str]) -> list[int]:
        return [int(exact(gamma) * subject.numel) for gamma in of_models(self.gamma, models)]
