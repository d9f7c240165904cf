"""What the methods give back: the merged model, and how it came to be."""

from __future__ import annotations

from pathlib import Path

from ..engine.report import Report
from ..engine.stream import Target, Work
from ..forms import well_formed
from ..fw.output import copying, not_merged, publish
from ..fw.result import RunResult
from .record import AdaMergingRecord, MeanRecord, Step


class Result(RunResult[AdaMergingRecord | MeanRecord]):
    """What the methods that data inform give back."""

    __slots__ = ()

    @property
    def steps(self) -> list[Step]:
        """All steps, the first first; none of a closed form."""
        return self.record.steps

    @property
    def coefficients(self) -> dict[str, dict[str, float]]:
        """By row ("model", or each layer), the λ or the weight of every member of the pool."""
        rows = zip(self.record.rows, self.record.coefficients, strict=True)
        return {row: dict(zip(self.record.pool, values, strict=True)) for row, values in rows}

    @well_formed
    def write(self, out: str | Path, *, overwrite: bool = False) -> Report:
        """Write the merged model as an ordinary Hugging Face folder.

        Configuration and tokenizer are those of the first candidate that is a folder (the initial solution's before the
        pool's); what is not merged (integers, task-specific tensors) is the model's. The record goes beside it.
        """
        state = self.model.state_dict()

        def make(slot: str, target: Target, _: list[str]) -> Work:
            return copying(state[slot].detach(), target, self.candidates.chunk)

        own = not_merged(self.model, self.candidates)
        return publish(self.record, self.candidates, make, own, Path(out), overwrite=overwrite)
