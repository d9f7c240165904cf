"""FREE-Merging: a high-pass filtered backbone with a sparse expert per task (Zheng & Wang 2025)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from . import _quantiles
from ._declaration import FLOAT32, Block, Method, Pass, Remarks, Statistics, Subject, exact, single
from ._fourier import FourierMethod, Prepared, absolute_sums
from ._rows import largest_of_rows

if TYPE_CHECKING:
    from torch import Tensor

RESCALES = ("released", "paper")
# Rows of the last pass's sums, after the coefficients: the sum of kept magnitudes, their number, and the sum of
# magnitudes that μ_k is divided by.
KEPT, COUNT, BELOW = 1, 2, 3


def _rescale(value: Any) -> str | float:
    if value in RESCALES:
        return str(value)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= FLOAT32:
        raise ValueError("expected 'released', 'paper', or a number that float32 can hold")
    return number


Rescale = Annotated[
    str | float, PlainValidator(_rescale), WithJsonSchema({"anyOf": [{"enum": list(RESCALES)}, {"type": "number"}]})
]


def magnitudes(experts: Sequence[Tensor]) -> Tensor:
    """Σ|values| of each, in float64."""
    import numpy as np
    import torch

    if len({values.numel() for values in experts}) > 1:
        return torch.cat([magnitudes([values]) for values in experts])
    first = experts[0]
    # Torch would fill them by threads that go on spinning beside ours.
    zeros = np.zeros(first.numel(), np.float64 if first.dtype == torch.float64 else np.float32)
    return absolute_sums(torch.from_numpy(zeros).to(first.device), experts)


class FREE(FourierMethod):
    """FR-Merging's backbone, and per task an expert μ_k · M(τ_k, d) of the largest magnitudes, added on demand.

    M keeps the fraction d of the task vector itself, of every tensor that is merged. μ_k restores what the filter takes
    (Section 5.3), from means over tensors of per-tensor means: E|M(τ_k, d)| over kept elements, and E|G(τ_k)|, G being
    the identity on tensors that are not filtered; with others="base" these do not count. "released" needs E|G(τ_k)|,
    that is, a filter per model, whose weighted sum the backbone is then; with "paper" and numbers one filter does.
    """

    name = "free"
    source = "Zheng & Wang 2025, arXiv 2411.16815, Sections 5.2-5.4"

    nonfinite: Literal["error"] = Field(
        default="error", description="always stop at NaN and infinity: no expert can hold them"
    )
    expert_density: float = Field(
        default=0.01, gt=0, le=1, description="d, the fraction of a task vector that its expert keeps"
    )
    scope: Literal["tensor", "global", "row"] = Field(
        default="tensor",
        description="keep the largest ⌈d · n⌉ of each tensor, or of the whole task vector, or ⌊d · n⌋ of each row",
    )
    rescale: Rescale = Field(
        default="released",
        description="μ_k: −E|M| log10(d) / E|G(τ_k)|, −E|M| ln(d) / (λ_k E|τ_k|) (Eq. 4), or a number",
    )

    def problems(self, models: Sequence[str]) -> list[str]:
        problems = super().problems(models)
        if self.rescale == "paper" and self.coefficients == "tensor":
            problems.append("free: rescale=paper needs one coefficient a model; choose others than coefficients=tensor")
        return problems

    def remarks(self, tensors: Sequence[tuple[Subject, Method]]) -> Remarks:
        """Also of rows so short that nothing is kept of them, which is wrong where it is so of all."""
        found, some = super().remarks(tensors), [subject for subject, _ in tensors if subject.numel]
        short = [subject for subject in some if self.scope == "row" and not self.row_size(subject)]
        if not short:
            return found
        which = "any tensor"
        if len(short) < len(some):
            which = f"{len(short)} of {len(some)} tensors, such as {short[0].name!r}"
        text = (
            f"of rows of fewer than {math.ceil(1 / self.density)} elements expert_density={self.expert_density:g} "
            f"keeps none, so that experts are empty of {which}; keep more, or the largest of each tensor (scope=tensor)"
        )
        if len(short) == len(some):
            return Remarks([*found.problems, f"free: {text}"], found.notes)
        return Remarks(found.problems, [*found.notes, text])

    @property
    def density(self) -> Fraction:
        return exact(self.expert_density)

    def passes(self, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        return (*self._histograms(models, wide), *super().passes(models, wide))

    def passes_on(self, subject: Subject, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        return (*self._histograms(models, wide), *super().passes_on(subject, models, wide))

    @property
    def tells_each(self) -> bool:
        return self.rescale == "released"

    def _histograms(self, models: Sequence[str], wide: bool) -> tuple[Pass, ...]:
        """The readings after which the whole task vector's largest elements are known."""
        return _quantiles.passes([self.density] * len(models), wide, math.ceil) if self.scope == "global" else ()

    def merging(self, models: Sequence[str], subject: Subject | None = None, wide: bool = False) -> Pass:
        from .. import ops

        def sizes(subject: Subject, earlier: Sequence[Statistics]) -> list[int]:
            return self.sizes(subject, models, earlier, wide)

        def prepare(block: Block, earlier: Sequence[Statistics]) -> Prepared:
            self._take_experts(block, sizes(block.subject, earlier))
            return self.prepare(block, models, earlier)

        merging = super().merging(models, subject, wide)
        n = 0 if subject is None else subject.numel
        held = merging.held + len(models) * ops.extraction_room(math.ceil(self.density * n), n) * (10 if wide else 6)
        held += 8 * n if wide else 0  # base, where it is widened
        return replace(merging, rows=4, prepare=prepare, experts=sizes, held=held)

    def sizes(self, subject: Subject, models: Sequence[str], earlier: Sequence[Statistics], wide: bool) -> list[int]:
        """Per model how many elements of the tensor its expert keeps; before the statistics are known, about."""
        levels = len(self._histograms(models, wide))
        if levels and len(earlier) >= levels:
            densities = [self.density] * len(models)
            return _quantiles.local_ranks(subject.name, densities, earlier[:levels], math.ceil)
        if self.scope == "row":
            return [self.row_size(subject) * (subject.numel // subject.columns)] * len(models)
        return [math.ceil(self.density * subject.numel)] * len(models)

    def row_size(self, subject: Subject) -> int:
        """How many elements of a row an expert keeps."""
        return int(self.density * subject.columns)

    def prepare(self, block: Block, models: Sequence[str], earlier: Sequence[Statistics]) -> Prepared:
        from .. import ops

        assert block.base is not None
        assert block.sums is not None
        if self.others == "base" and self.matrices(block.subject) is None:
            block.sums[KEPT] = 0.0
            block.nonfinite += int(ops.moments(block.base, block.models).nonfinite.sum())
        elif self.rescale == "paper" or (self.tells_each and self.matrices(block.subject) is None):
            block.sums[BELOW] = absolute_sums(block.base, block.models)
        return super().prepare(block, models, earlier)

    def merge(self, block: Block, prepared: Prepared) -> None:
        super().merge(block, prepared)
        last = block.start + block.models[0].numel() == block.subject.numel
        if last and self.tells_each and prepared.filtered is not None:
            assert block.sums is not None
            block.sums[BELOW] = block.sums.new_tensor(prepared.filtered.each_magnitude())

    def _take_experts(self, block: Block, sizes: Sequence[int]) -> None:
        """M(τ_k, d) of a whole tensor, in the working type."""
        from .. import ops
        from ..ops.memory import widened

        base, models = block.base, block.models
        assert base is not None
        assert block.sums is not None
        if self.scope == "row":
            row = self.row_size(block.subject)
            base = widened(base, models)
            experts = [largest_of_rows(base, model, block.subject.columns, row) for model in models]
        else:
            experts = ops.extract_largest(base, models, sizes)
        block.experts = [*experts]
        block.sums[KEPT] = magnitudes([expert.values for expert in experts])
        block.sums[COUNT] = block.sums.new_tensor([expert.values.numel() for expert in experts])

    def results(self, statistics: Sequence[Statistics]) -> dict[str, list[float]]:
        return super().results(statistics) | {"scales": self.scales(statistics)}

    def scales(self, statistics: Sequence[Statistics]) -> list[float]:
        """μ_k, rounded to float32; 0 of a task that is equal to base."""
        last = statistics[-1]
        if isinstance(self.rescale, float):
            return [single(self.rescale)] * last.models
        logarithm = math.log10 if self.rescale == "released" else math.log
        coefficients = [1.0] * last.models
        if self.rescale == "paper":
            coefficients = super().results(statistics).get("coefficients", coefficients)
        scales = []
        for k, coefficient in enumerate(coefficients):
            rows = [(sums[:, k].tolist(), last.sizes[name]) for name, sums in last.sums.items() if sums[COUNT, k]]
            kept = math.fsum(sums[KEPT] / sums[COUNT] for sums, _ in rows)
            below = coefficient * math.fsum(sums[BELOW] / size for sums, size in rows)
            scales.append(single(kept * logarithm(1 / self.expert_density) / below) if below else 0.0)
        return scales
