"""What a run is asked to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from ..errors import InputError, nearest
from .choice import Alignment, Level
from .simplex import Simplex

Variant = Literal["hard", "soft"]
Rule = Literal["line_search", "2/(t+2)"]
CHOICES: dict[str, tuple[str, ...]] = {
    "variant": get_args(Variant),
    "lmo": get_args(Level),
    "coefficients": get_args(Level),
    "alignment": get_args(Alignment),
    "simplex": get_args(Simplex),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Arguments of `frank_wolfe` that decide its result, beside model, pool and objective. InputError where wrong."""

    variant: Variant = "hard"
    lmo: Level = "task"
    coefficients: Level = "task"
    alignment: Alignment = "inner"
    step: Rule | float = "line_search"
    steps: int = 10
    top_k: int = 3
    per_task_top_k: int | None = None
    simplex: Simplex = "anchored"
    inner_steps: int = 20
    tolerance: float = 0.0
    initial_vertex: bool = True
    layers: str | Sequence[str] = "tensor"
    task_specific: Sequence[str] = ()

    def __post_init__(self) -> None:
        problems = []
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                known = " or ".join(map(repr, choices))
                problems.append(f"{name}: is {value!r}{nearest(str(value), choices)}; expected {known}")
        for name in ("steps", "top_k", "inner_steps", "per_task_top_k"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                problems.append(f"{name}: is {value!r}; expected a whole number, 1 at least")
        number = isinstance(self.step, (int, float)) and not isinstance(self.step, bool)
        if self.step not in get_args(Rule) and not (number and 0 < float(self.step) <= 1):
            problems.append(f"step: is {self.step!r}; expected 'line_search', '2/(t+2)', or a number in (0, 1]")
        if math.isnan(self.tolerance):
            problems.append("tolerance: is no number")
        if isinstance(self.layers, str) and self.layers not in ("tensor", "block"):
            problems.append(f"layers: is {self.layers!r}; expected 'tensor', 'block', or a list of patterns")
        if self.variant == "hard" and self.per_task_top_k is not None:
            problems.append("per_task_top_k: is for variant='soft'")
        if self.variant == "soft" and self.step != "line_search":
            problems.append("step: is for variant='hard'; soft steps are as long as their coefficients make them")
        if problems:
            raise InputError(problems)

    @property
    def by_layer(self) -> bool:
        """Whether layers have coefficients of their own."""
        return "layer" in (self.lmo, self.coefficients)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON; -inf as text."""
        content = asdict(self)
        layers = self.layers if isinstance(self.layers, str) else list(self.layers)
        return content | {
            "tolerance": self.tolerance if math.isfinite(self.tolerance) else str(self.tolerance),
            "layers": layers,
            "task_specific": list(self.task_specific),
        }
