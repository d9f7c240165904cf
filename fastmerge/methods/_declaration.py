"""What a method is made of: parameters, passes, blocks and statistics. No device, dtype or file is named here."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from ..weights import cancel

if TYPE_CHECKING:
    from torch import Tensor

    from ..ops import Cut, Expert, LowRank

FLOAT32 = 3.4e38  # the largest number of the type that most tensors are merged in, nearly
Finite = Annotated[float, Field(allow_inf_nan=False)]
Written = Literal["merged", "unified", "masks"]
ExpertSize = int | tuple[int, int, int]  # elements of a sparse expert; or rows, rank and columns of a product


@dataclass(frozen=True, slots=True)
class Subject:
    """The tensor that is merged."""

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def columns(self) -> int:
        """Elements a row has: what one index of the first dimension selects; of a vector, all of it. At least 1."""
        rows = self.shape[0] if len(self.shape) > 1 else 1
        return max(1, self.numel // max(1, rows))


@dataclass(slots=True)
class Block:
    """The same elements of one tensor in base, every model and whatever the pass writes, all 1-D.

    `start` is the index of the first of them in the tensor. `whole` are base and models whole, where the pass asked for
    them; `ranks` per model those it asked for, and `cuts` their cuts (but of 0 and of all elements); `prepared` is what
    its `prepare` returned. `prepare` sets `experts`, one a model, where the pass has some. `sums` is float64
    [rows, K], the tensor's statistics so far, to be added to; `nonfinite` counts bad results.
    """

    subject: Subject
    models: list[Tensor]
    base: Tensor | None = None
    start: int = 0
    whole: tuple[Tensor | None, list[Tensor]] | None = None
    ranks: list[list[int]] = field(default_factory=list)
    cuts: list[dict[int, Cut]] = field(default_factory=list)
    prepared: Any = None
    merged: Tensor | None = None
    unified: Tensor | None = None
    masks: Tensor | None = None
    experts: list[Expert | LowRank] = field(default_factory=list)
    sums: Tensor | None = None
    nonfinite: int = 0


@dataclass(slots=True)
class Statistics:
    """What a pass has summed up over K models: for every tensor its size and `sums`, float64 [rows, K]."""

    models: int
    sizes: dict[str, int] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    _totals: dict[tuple[int, bool, int], list[float]] = field(default_factory=dict, compare=False)

    def in_order(self, names: Iterable[str]) -> Statistics:
        """The same, in the order of these tensors, whichever was done first."""
        known = [name for name in names if name in self.sums]
        return Statistics(self.models, {n: self.sizes[n] for n in known}, {n: self.sums[n] for n in known})

    def total(self, row: int, *, means: bool = False) -> list[float]:
        """Per model, the sum over tensors (with `means`, of per-tensor means), leaving non-finite tensors out."""
        known = row, means, len(self.sums)  # every tensor may ask, and no tensor's sums change
        if known not in self._totals:
            finite = [
                [value / (self.sizes[name] if means else 1) for value in sums[row].tolist()]
                for name, sums in self.sums.items()
                if self.sizes[name] and sums.isfinite().all()
            ]
            self._totals[known] = [math.fsum(sums[k] for sums in finite) for k in range(self.models)]
        return self._totals[known]


@dataclass(frozen=True, slots=True)
class Pass:
    """One reading of the checkpoints: `run` works on a block, knowing the statistics of the passes before.

    Where given, `ranks` names per model the ranks whose cuts the pass needs (ops.kth_magnitude), and `prepare` works on
    the whole tensor before its first block; what it returns is `Block.prepared`. `rows_whole`: no row may be cut.
    `statistic` names sums that depend on the inputs alone, so that another run may use them. `prefilter` gives, of the
    whole tensor, task vectors that take the models' place, as if base were zero. `experts` tells the size of each
    model's expert of a tensor, if it has some; before the passes that decide it, about. `held`: bytes of memory that it
    takes beside the block. `idle`: it has nothing to do with the tensor, which is not read. `together`: what ops write
    is read by ops alone, so that those of many small tensors may be called at once. `by_torch`: much of it is done by
    torch, in operations on elements, whose results do not depend on its number of threads.
    """

    run: Callable[[Block, Sequence[Statistics]], None]
    writes: tuple[Written, ...] = ()
    rows: int = 0  # rows of Block.sums
    ranks: Callable[[Subject, Sequence[Statistics]], list[list[int]]] | None = None
    prepare: Callable[[Block, Sequence[Statistics]], Any] | None = None
    rows_whole: bool = False
    statistic: str | None = None
    prefilter: Callable[[Block], list[Tensor]] | None = None
    experts: Callable[[Subject, Sequence[Statistics]], Sequence[ExpertSize]] | None = None
    held: int = 0
    idle: bool = False
    together: bool = False
    by_torch: bool = False

    @property
    def needs_whole(self) -> bool:
        """Whether the whole tensor is looked at before, or beside, its blocks."""
        return any(own is not None for own in (self.ranks, self.prepare, self.prefilter)) or self.rows_whole


IDLE = Pass(lambda *_: None, idle=True)


@dataclass(slots=True)
class Remarks:
    """What is wrong with tensors for a method, and what users should know of them."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


PerModel = float | tuple[float, ...] | dict[str, float]


def per_model(
    low: float = -math.inf, high: float = math.inf, words: Sequence[str] = (), *, optional: bool = False
) -> Any:
    """The type of a parameter that may differ by model: a number for all, one a model in order, or by name.

    One of `words` may stand for all of them, and None where it is `optional`. Also accepts the command line's "0.5",
    "0.3,0.7" and "math=0.3,code=0.7".
    """

    def number(value: Any) -> float:
        try:
            result = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            result = math.nan
        if not math.isfinite(result) or not low <= result <= high:
            bounds = f" from {low:g} to {high:g}" if math.isfinite(high) else ""
            raise ValueError(
                f"expected {''.join(f'{word!r}, ' for word in words)}{'or ' if words else ''}numbers{bounds}"
            )
        return result

    def parse(value: Any) -> PerModel | str | None:
        if isinstance(value, str) and value in words:
            return value
        if isinstance(value, str) and "=" in value:
            value = dict(part.strip().partition("=")[::2] for part in value.split(","))
        elif isinstance(value, str) and "," in value:
            value = value.split(",")
        if isinstance(value, Mapping):
            return {str(name): number(own) for name, own in value.items()}
        if isinstance(value, (list, tuple)):
            return tuple(number(own) for own in value)
        return None if value is None and optional else number(value)

    one = {"type": "number"} | ({"minimum": low, "maximum": high} if math.isfinite(high) else {})
    forms: list[dict[str, Any]] = [{"enum": list(words)}] if words else []
    forms += [one, {"type": "array", "items": one}, {"type": "object", "additionalProperties": one}]
    return Annotated[Any, PlainValidator(parse), WithJsonSchema({"anyOf": forms})]


def of_models(value: PerModel, models: Sequence[str]) -> list[float]:
    """A parameter's number for each model, in order."""
    if isinstance(value, dict):
        return [value[name] for name in models]
    return list(value) if isinstance(value, tuple) else [value] * len(models)


def exact(value: float) -> Fraction:
    """A parameter as the decimal that was written: 0.07 is 7/100."""
    return Fraction(repr(value))


def single(value: float) -> float:
    """Rounded to float32."""
    return ctypes.c_float(value).value


class Method(BaseModel):
    """A merge method. Subclasses give `name` and `source`, parameters as fields, and `passes`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    source: ClassVar[str]  # paper and equation
    uses_base: ClassVar[bool] = True
    counts: ClassVar[tuple[int, int]] = (1, 64)  # models at least, and at most
    per_tensor: ClassVar[frozenset[str]] = frozenset()  # parameters that may differ from tensor to tensor
    by_model: ClassVar[tuple[str, ...]] = ()  # parameters that may differ from model to model

    # Defaults are keywords in the classes that others derive from: mypy finds them nowhere else.
    nonfinite: Literal["error", "allow"] = Field(
        default="error", description="stop at NaN and infinity, or let them through"
    )

    def problems(self, models: Sequence[str]) -> list[str]:
        """What is wrong with the parameters for these models (names, in order)."""
        least, most = self.counts
        problems = []
        if not least <= len(models) <= most:
            wanted = f"{least}" if least == most else f"{least} or more" if len(models) < least else f"{most} or fewer"
            noun = "model" if wanted == "1" else "models"
            problems.append(f"{self.name} merges {wanted} {noun}, these are {len(models)} ({', '.join(models)})")
        for name in self.by_model:
            value = getattr(self, name)
            if isinstance(value, dict) and set(value) != set(models):
                problems.append(f"{self.name}: {name} are for {', '.join(value)}; the models are {', '.join(models)}")
            if isinstance(value, tuple) and len(value) != len(models):
                count = f"{len(value)} {name} for {len(models)} models"
                problems.append(f"{self.name}: {count} ({', '.join(models)})")
        return problems

    def passes(self, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        """The readings that make up the method, for these models; `wide`: some tensor is merged in float64."""
        raise NotImplementedError

    def passes_on(self, subject: Subject, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        """What each of the readings does with one tensor."""
        return self.passes(models, wide)

    def remarks(self, tensors: Sequence[tuple[Subject, Method]]) -> Remarks:
        """About all tensors that are merged, each with the method as it merges it."""
        return Remarks()

    def results(self, statistics: Sequence[Statistics]) -> dict[str, list[float]]:
        """Numbers per model that belong to the result, such as rescalers."""
        return {}


class WeightedMethod(Method):
    """A method with a weight per model."""

    per_tensor = frozenset({"weights"})
    by_model: ClassVar[tuple[str, ...]] = ("weights",)

    weights: per_model(optional=True) = Field(  # type: ignore[valid-type]
        default=None, description="one number a model, in order or by name; all ones by default"
    )

    def weights_of(self, models: Sequence[str]) -> list[float]:
        """The weights in the order of the models."""
        return of_models(1.0 if self.weights is None else self.weights, models)


class NormalizedMethod(WeightedMethod):
    """A weighted method that may divide by the sum of the weights."""

    normalize: bool = Field(default=False, description="divide by the sum of the weights")

    def problems(self, models: Sequence[str]) -> list[str]:
        problems = super().problems(models)
        if not problems and self.normalize and cancel(self.weights_of(models)):
            problems.append(f"{self.name}: the weights sum to zero; give others, or normalize=false")
        return problems
