"""What a run gives back: the merged model, and how it came to be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import nn

from ..engine.report import Report
from ..errors import InputError
from ..forms import well_formed
from .candidates import Candidates
from .folder import write_folder
from .output import not_merged
from .record import Record, RunRecord, Step

R = TypeVar("R", bound=RunRecord)


@dataclass(frozen=True, slots=True, repr=False)
class RunResult(Generic[R]):
    """`model` holds the merged weights; `record` tells the rest, and goes into JSON."""

    record: R
    model: nn.Module
    candidates: Candidates

    def __repr__(self) -> str:
        return f"Result({self.record.method} of {', '.join(self.record.candidates)}, loss={self.loss})"

    @property
    def state_dict(self) -> dict[str, Any]:
        """The merged model's."""
        return self.model.state_dict()

    @property
    def loss(self) -> float | None:
        """Of the merged model on all batches, where there was a loss."""
        return self.record.loss

    @well_formed
    def save(self, path: str | Path) -> None:
        """Write the record as JSON."""
        self.record.save(path)


class Result(RunResult[Record]):
    """What `frank_wolfe` gives back."""

    __slots__ = ()

    @property
    def steps(self) -> list[Step]:
        """All steps, the first first."""
        return self.record.steps

    @property
    def coefficients(self) -> dict[str, dict[str, float]]:
        """By row ("model", or each layer), the convex coefficient of every candidate."""
        if self.record.coefficients is None:
            raise InputError("a model made by merge_fn has no coefficients")
        names = self.record.candidates
        rows = zip(self.record.rows, self.record.coefficients, strict=True)
        return {row: dict(zip(names, values, strict=True)) for row, values in rows}

    @well_formed
    def draw(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Draw loss, gap and choices as PNG; needs matplotlib."""
        from .plot import draw

        draw(self.record, Path(path), overwrite=overwrite)

    @well_formed
    def write(self, out: str | Path, *, overwrite: bool = False) -> Report:
        """Write the merged model as an ordinary Hugging Face folder, streamed from the candidates.

        Configuration and tokenizer are those of the initial solution's folder, or else of the first that is one; what
        is not merged (integers, task-specific tensors) is the model's. frank_wolfe.json beside it is the record.
        """
        own = not_merged(self.model, self.candidates)
        return write_folder(self.record, self.candidates, own, Path(out), overwrite=overwrite)
