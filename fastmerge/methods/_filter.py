"""FR-Merging's high-pass filter as part of a method: its cutoff, and the tensors that it applies to."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ..cutoff import Cutoff
from ..errors import InputError, nearest
from ..targets import STACKS, excluded, matches, matrices, unmatched
from ._declaration import Block, Remarks, Subject

if TYPE_CHECKING:
    from torch import Tensor

    from ..ops import Filtered

IDENTITY = 0.995  # of the bins kept: a filter that hardly filters
ROWS = 1 << 19  # elements of the rows that all threads work on together, about


def _patterns(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


Patterns = Annotated[tuple[str, ...], BeforeValidator(_patterns, json_schema_input_type=str | list[str])]


class Filter(BaseModel):
    """A high-pass filter (Zheng & Wang 2025, Eq. 1-2), by its cutoff (fastmerge.cutoff) and the tensors it is for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cutoff: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="D0 in halves of the shorter side; 0.3 by default"
    )
    bins: float | None = Field(default=None, ge=0, le=1, description="or the fraction of all bins that is removed")
    convention: Literal["paper", "released"] = Field(
        default="paper", description="from the spectrum's centre, or unshifted"
    )
    ratio: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="of the released convention; 0.7 by default"
    )
    targets: Patterns | None = Field(
        default=None,
        description="patterns of tensors to filter; all 2-D weights but embeddings and output heads by default",
    )
    exclude: Patterns = Field(default=(), description="patterns of tensors not to filter")
    stacks: Patterns = Field(default=STACKS, description="patterns of 3-D tensors that are stacks of matrices")
    convolutions: bool = Field(default=False, description="filter convolutions too, as [out, in·kh·kw]")
    filter_1d: bool = Field(default=False, description="filter 1-D tensors too, as matrices of one row")

    @model_validator(mode="after")
    def _one_cutoff(self) -> Filter:
        try:
            _ = self.limits
        except InputError as error:
            raise ValueError("; ".join(error.problems)) from None
        return self

    @property
    def limits(self) -> Cutoff:
        """Which frequencies are kept."""
        return Cutoff(self.cutoff, self.bins, self.convention, self.ratio)

    def matrices(self, subject: Subject) -> tuple[int, int, int] | None:
        """The tensor as [B, H, W], B matrices to be filtered; None where it is not."""
        shape, name = subject.shape, subject.name
        if matches(name, self.exclude) or (self.targets is not None and not matches(name, self.targets)):
            return None
        if len(shape) == 1:
            return (1, 1, *shape) if self.filter_1d else None
        if self.convolutions and (len(shape) > 3 or (len(shape) == 3 and "conv" in name)):
            return 1, shape[0], math.prod(shape[1:])
        return None if self.targets is None and excluded(name) else matrices(name, shape, self.stacks)

    def filtered(
        self, block: Block, models: Sequence[Tensor], weights: Sequence[float], each: bool = False
    ) -> Filtered:
        """G(Σ_k w_k · τ_k) of a whole tensor that has matrices, filtered together or each."""
        from .. import ops

        shape = self.matrices(block.subject)
        base = block.base
        assert base is not None
        assert shape is not None
        return ops.Filtered(base.view(shape), [m.view(shape) for m in models], weights, self.limits, each=each)

    def deltas(self, block: Block) -> list[Tensor]:
        """G(τ_k) of a whole tensor for every model, 1-D, in the working type; one filter a model."""
        from .. import ops
        from ..ops.memory import scratch

        base, models = self._as_matrices(block)
        outs = [scratch(base, ops.working_dtype([base, *models])) for _ in models]
        ops.Filtered.deltas(base, models, self.limits, outs)
        return outs

    def magnitudes(self, block: Block) -> list[float]:
        """Per model Σ|G(τ_k)| of a whole tensor; one filter a model."""
        from .. import ops

        return ops.Filtered.magnitudes(*self._as_matrices(block), self.limits)

    def _as_matrices(self, block: Block) -> tuple[Tensor, list[Tensor]]:
        """Base and models of a whole tensor that has matrices."""
        shape = self.matrices(block.subject)
        assert block.base is not None
        assert shape is not None
        return block.base.view(shape), [model.view(shape) for model in block.models]

    def panel_bytes(self, subject: Subject, wide: bool, filters: int = 1) -> int:
        """What filters of the tensor hold of its spectrum, and of rows that are worked on."""
        _, h, w = self.matrices(subject) or (0, 0, 0)
        elements = 2 * filters * self.limits.columns(h, w) * h + min(h * w, ROWS) if h * w else 0
        return elements * (8 if wide else 4)


def remarks(method: str, tensors: Sequence[tuple[Subject, Filter]], *, patterns: bool = True) -> Remarks:
    """Filters that apply to nothing, and those that are nearly the identity; `patterns`: each must match something."""
    found = [(subject, own, shape) for subject, own in tensors if (shape := own.matrices(subject)) is not None]
    problems = list(_unmatched(method, tensors)) if patterns else []
    if not found and not problems:
        problems.append(
            f"{method}: there is no tensor to filter: by default these are the 2-D weights but embeddings, output "
            "heads and LoRA factors; name others in targets, or pass filter_1d=true"
        )
    shapes: dict[tuple[int, int, float], int] = {}
    for _, own, (_, h, w) in found:
        share = own.limits.share(h, w)
        if share >= IDENTITY:
            shapes[h, w, share] = shapes.get((h, w, share), 0) + 1
    listed = [f"{h} × {w} ({_tensors(n)}, {share:.4%} of the bins kept)" for (h, w, share), n in shapes.items()]
    more = f" and {len(listed) - 5} more shapes" if len(listed) > 5 else ""
    notes = [f"the filter is nearly the identity on {', '.join(listed[:5])}{more}"] if listed else []
    return Remarks(problems, notes)


def _unmatched(method: str, tensors: Sequence[tuple[Subject, Filter]]) -> Iterator[str]:
    """Patterns that match no tensor that is merged."""
    names = [subject.name for subject, _ in tensors]
    given = {
        (option, pattern): None
        for _, own in tensors
        for option, patterns in (("targets", own.targets or ()), ("exclude", own.exclude))
        for pattern in patterns
    }
    for option, pattern in given:
        if unmatched((pattern,), names):
            known = dict.fromkeys(re.sub(r"\d+", "*", name) for name in names)
            yield f"{method}: {option} {pattern!r} matches no tensor that is merged{nearest(pattern, known)}"


def _tensors(count: int) -> str:
    return f"{count} tensor{'s' if count > 1 else ''}"
