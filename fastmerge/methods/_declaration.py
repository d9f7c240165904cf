"""What a method is made of: parameters, passes, blocks and statistics. No device, dtype or file is named here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

if TYPE_CHECKING:
    from torch import Tensor

Finite = Annotated[float, Field(allow_inf_nan=False)]
Written = Literal["merged", "unified", "masks"]


@dataclass(slots=True)
class Block:
    """The same elements of one tensor in base, every model and whatever the pass writes, all 1-D.

    `sums` is float64 [rows, K], the tensor's statistics so far, to be added to; `nonfinite` counts bad results.
    """

    models: list[Tensor]
    base: Tensor | None = None
    merged: Tensor | None = None
    unified: Tensor | None = None
    masks: Tensor | None = None
    sums: Tensor | None = None
    nonfinite: int = 0


@dataclass(slots=True)
class Statistics:
    """What a pass has summed up over K models: for every tensor its size and `sums` as rows of K numbers."""

    models: int
    sizes: dict[str, int] = field(default_factory=dict)
    sums: dict[str, list[list[float]]] = field(default_factory=dict)

    def total(self, row: int, *, means: bool = False) -> list[float]:
        """Per model, the sum over tensors (with `means`, of per-tensor means), leaving non-finite tensors out."""
        finite = [
            [value / (self.sizes[name] if means else 1) for value in sums[row]]
            for name, sums in self.sums.items()
            if self.sizes[name] and all(math.isfinite(value) for line in sums for value in line)
        ]
        return [math.fsum(sums[k] for sums in finite) for k in range(self.models)]


@dataclass(frozen=True, slots=True)
class Pass:
    """One reading of the checkpoints: `run` works on a block, knowing the statistics of the passes before."""

    run: Callable[[Block, Sequence[Statistics]], None]
    writes: tuple[Written, ...] = ()
    rows: int = 0  # rows of Block.sums


def _parse_weights(value: Any) -> Any:
    """Accept the command line's "0.3,0.7" and "math=0.3,code=0.7"."""
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split(",")]
    if all("=" in part for part in parts):
        return dict(part.split("=", 1) for part in parts)
    return parts


Weights = Annotated[tuple[Finite, ...] | dict[str, Finite] | None, BeforeValidator(_parse_weights)]


class Method(BaseModel):
    """A merge method. Subclasses give `name` and `source`, parameters as fields, and `passes`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    source: ClassVar[str]  # paper and equation
    uses_base: ClassVar[bool] = True

    nonfinite: Literal["error", "allow"] = Field("error", description="stop at NaN and infinity, or let them through")

    def problems(self, models: Sequence[str]) -> list[str]:
        """What is wrong with the parameters for these models (names, in order)."""
        return []

    def passes(self, models: Sequence[str]) -> tuple[Pass, ...]:
        """The readings that make up the method, for these models."""
        raise NotImplementedError

    def results(self, statistics: Sequence[Statistics]) -> dict[str, list[float]]:
        """Numbers per model that belong to the result, such as rescalers."""
        return {}


class WeightedMethod(Method):
    """A method with a weight per model."""

    weights: Weights = Field(None, description="one number a model, in order or by name; all ones by default")

    def problems(self, models: Sequence[str]) -> list[str]:
        if self.weights is None:
            return []
        if isinstance(self.weights, dict):
            if set(self.weights) == set(models):
                return []
            return [f"{self.name}: weights are for {', '.join(self.weights)}; the models are {', '.join(models)}"]
        if len(self.weights) == len(models):
            return []
        return [f"{self.name}: {len(self.weights)} weights for {len(models)} models ({', '.join(models)})"]

    def weights_of(self, models: Sequence[str]) -> list[float]:
        """The weights in the order of the models."""
        if isinstance(self.weights, dict):
            return [self.weights[name] for name in models]
        return list(self.weights or [1.0] * len(models))


class NormalizedMethod(WeightedMethod):
    """A weighted method that may divide by the sum of the weights."""

    normalize: bool = Field(False, description="divide by the sum of the weights")

    def problems(self, models: Sequence[str]) -> list[str]:
        problems = super().problems(models)
        if not problems and self.normalize and sum(self.weights_of(models)) == 0:
            problems.append(f"{self.name}: the weights sum to zero; give others, or normalize=false")
        return problems
