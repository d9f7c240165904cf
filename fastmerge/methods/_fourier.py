"""FR-Merging's merge, which FREE-Merging builds its experts on: coefficients, filters, and what is not filtered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ._declaration import (
    IDLE,
    Block,
    Finite,
    Method,
    Pass,
    Remarks,
    Statistics,
    Subject,
    of_models,
    per_model,
    single,
)
from ._filter import Filter, remarks

if TYPE_CHECKING:
    from torch import Tensor

    from ..ops import Filtered

KINDS = ("global", "mean_of_means", "tensor", "sum")
PRESETS: dict[str, dict[str, Any]] = {
    "released-vision": {
        "convention": "released",
        "ratio": 0.7,
        "coefficients": "sum",
        "scale": 0.7,
        "align": "layer",
        "targets": ("*attn*", "*attention*", "*mlp*", "*intermediate.dense*", "*layer.*.output.dense*"),
        "exclude": ("*bias*",),
        "others": "base",
    },
    "released-llm": {"convention": "released", "ratio": 0.9},
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """The coefficients of a tensor, and its filtered sum, where it is filtered."""

    coefficients: list[float]
    filtered: Filtered | None = None


class FourierMethod(Filter, Method):
    """θ_pre + scale · Σ_k λ_k G(τ_k), G a high-pass filter of each matrix (Zheng & Wang 2025, Section 5.2).

    G is linear: Σ_k λ_k G(τ_k) = G(Σ_k λ_k τ_k), one filter whatever the number of models.
    """

    per_tensor = frozenset({"scale", "cutoff", "bins", "ratio", "align"})
    by_model: ClassVar[tuple[str, ...]] = ("coefficients",)

    preset: Literal["released-vision", "released-llm"] | None = Field(
        default=None, description="as the released code has it"
    )
    coefficients: per_model(words=KINDS) = Field(  # type: ignore[valid-type]
        default="global",
        description="λ_k: E|τ_k| / Σ_j E|τ_j| of all filtered elements, of tensors' means, per tensor; ones; numbers",
    )
    scale: Finite = Field(default=1.0, description="the factor of the merged task vector")
    align: Literal["layer"] | None = Field(
        default=None, description="bring each task's filtered tensor to the largest mean magnitude of all tasks'"
    )
    others: Literal["merge", "base"] = Field(
        default="merge", description="tensors that are not filtered: summed, or base's"
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        preset = PRESETS.get(str(values.get("preset")), {}) if isinstance(values, Mapping) else {}
        return preset | values

    def remarks(self, tensors: Sequence[tuple[Subject, Method]]) -> Remarks:
        own = [(subject, method) for subject, method in tensors if isinstance(method, Filter)]
        return remarks(self.name, own, patterns=self.preset is None)

    @property
    def measures(self) -> bool:
        """Whether the method needs a first reading that sums up magnitudes."""
        return self.coefficients in ("global", "mean_of_means")

    @property
    def filters_each(self) -> bool:
        """Whether the method needs E|G(τ_k)| of every model."""
        return self.align == "layer" or self.tells_each

    @property
    def tells_each(self) -> bool:
        """Whether it does once the tensor is merged, that is, not before."""
        return False

    def passes(self, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        return (*((Pass(measure, rows=2, statistic="magnitudes"),) if self.measures else ()), self.merging(models))

    def passes_on(self, subject: Subject, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        first = (self.measuring(subject),) if self.measures else ()
        return (*first, self.merging(models, subject, wide))

    def measuring(self, subject: Subject) -> Pass:
        """The first reading, of the tensors whose magnitudes count."""
        counts = self.matrices(subject) is not None
        return Pass(measure, rows=2, statistic="magnitudes") if counts else IDLE

    def merging(self, models: Sequence[str], subject: Subject | None = None, wide: bool = False) -> Pass:
        """The last reading, of a tensor or in general; its first row of sums are the tensor's coefficients."""

        def prepare(block: Block, earlier: Sequence[Statistics]) -> Prepared:
            return self.prepare(block, models, earlier)

        def merge(block: Block, earlier: Sequence[Statistics]) -> None:
            import torch

            assert block.sums is not None
            prepared = block.prepared or Prepared(self.coefficients_of(block, models, earlier))
            if block.start == 0:
                own = torch.tensor(prepared.coefficients, dtype=block.sums.dtype)
                block.sums[0].copy_(own, non_blocking=True)  # a GPU may still compute what was launched before
            self.merge(block, prepared)

        plain = subject is not None and self.matrices(subject) is None and self.coefficients != "tensor"
        filters = len(models) if self.filters_each else 1
        held = 0 if subject is None else self.panel_bytes(subject, wide, filters)
        return Pass(
            merge, writes=("merged",), rows=1, prepare=None if plain else prepare, held=held, together=True
        )  # fmt: skip

    def prepare(self, block: Block, models: Sequence[str], earlier: Sequence[Statistics]) -> Prepared:
        """The coefficients, and the filter of a tensor that has one."""
        coefficients = self.coefficients_of(block, models, earlier)
        if self.matrices(block.subject) is None:
            return Prepared(coefficients)
        weights = coefficients
        if self.align == "layer":
            magnitudes = self.magnitudes(block)
            most = max(magnitudes)
            factors = [single(most / own) if own else 0.0 for own in magnitudes]
            weights = [single(c * f) for c, f in zip(coefficients, factors, strict=True)]
        return Prepared(coefficients, self.filtered(block, block.models, weights, self.tells_each))

    def merge(self, block: Block, prepared: Prepared) -> None:
        """Write a block of the merged tensor."""
        from .. import ops

        assert block.base is not None
        assert block.merged is not None
        if prepared.filtered is not None:
            block.nonfinite += prepared.filtered.write(block.start, block.merged, scale=self.scale)
        elif self.others == "base":
            block.nonfinite += ops.combine(None, [block.base], out=block.merged).nonfinite
        else:
            weights = prepared.coefficients
            merged = ops.combine(block.base, block.models, weights, scale=self.scale, out=block.merged)
            block.nonfinite += merged.nonfinite

    def coefficients_of(self, block: Block, models: Sequence[str], earlier: Sequence[Statistics]) -> list[float]:
        """λ_k of a whole tensor, rounded to float32 (Zheng & Wang 2025, Eq. 3; E is the mean of magnitudes)."""
        if self.coefficients == "sum":
            return [1.0] * len(models)
        if self.coefficients == "tensor":
            assert block.base is not None
            return shares(absolute_sums(block.base, block.models).tolist())
        if self.measures:
            return shares(earlier[-1].total(0, means=self.coefficients == "mean_of_means"))
        return [single(own) for own in of_models(self.coefficients, models)]

    def results(self, statistics: Sequence[Statistics]) -> dict[str, list[float]]:
        last = statistics[-1]
        found = {name: sums[0].tolist() for name, sums in last.sums.items() if last.sizes[name]}
        if self.coefficients == "tensor":
            return {f"coefficients of {name}": own for name, own in found.items()}
        return {"coefficients": next(iter(found.values()))} if found else {}


def measure(block: Block, _: Sequence[Statistics]) -> None:
    """Sum up magnitudes, in the first row."""
    assert block.base is not None
    absolute_sums(block.base, block.models, block.sums)


def absolute_sums(base: Tensor, models: Sequence[Tensor], sums: Tensor | None = None) -> Tensor:
    """Σ|τ_k| in float64."""
    from .. import ops

    return ops.kept_sums(base, models, ops.Kept(), sums=sums).magnitude


def shares(magnitudes: Sequence[float]) -> list[float]:
    """Each magnitude's part of their sum, rounded to float32; equal parts where there is none."""
    total = math.fsum(magnitudes)
    if not 0 < total < math.inf:
        return [single(1 / len(magnitudes))] * len(magnitudes)
    return [single(own / total) for own in magnitudes]
