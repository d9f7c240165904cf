"""What a run did and found, as JSON: enough to go on with it, and to make its model again without data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import InputError
from ..formats.checkpoint import read_json
from ..formats.folder import holds, write_whole
from ..formats.tasks import BaseRecord

if TYPE_CHECKING:
    from typing_extensions import Self

SUM_ERROR = 1e-9  # of a row of coefficients
COMPARED = ("fastmerge", "candidates", "identities", "rows", "tensors", "tasks")  # of two records


def file_to_write(path: str | Path, what: str = "") -> Path:
    """The file that a record is to become; InputError where there can be none."""
    file = Path(path).expanduser().resolve()
    if not os.path.isdir(file.parent):
        raise InputError(f"{what}{file.parent} is no folder")
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise InputError(f"{what}{file.parent} cannot be written to")
    if file.is_dir():
        raise InputError(f"{what}{file} is a folder; give the name of a file")
    return file


class Step(BaseModel):
    """One step: at θ_t the `loss` (and each task's), the `gap`; then where it went.

    `vertices`: the chosen candidates, a list for each row of coefficients (one row where all layers go the same way);
    `weights`: of each vertex the share that it got, γ_t of a hard step, λ of a soft one; a single row where all rows
    share it. `seconds` by what they were spent on.
    """

    model_config = ConfigDict(extra="forbid")

    number: int
    loss: float
    losses: dict[str, float]
    gap: float | None
    vertices: list[list[str]] = []
    weights: list[list[float]] = []
    seconds: dict[str, float] = {}


class TensorRecord(BaseModel):
    """A merged tensor: its row of coefficients, its kind, and what it is called."""

    model_config = ConfigDict(extra="forbid")

    row: int = Field(ge=0)
    dtype: Literal["BF16", "F16", "F32", "F64"]
    shape: list[int]
    names: list[str] = Field(min_length=1)


class RunRecord(BaseModel):
    """What all runs tell: of whom (`pool`, and of `candidates` the initial solution before them), and how.

    `coefficients`: for each of `rows`, those of each candidate. `identities`: where candidates were read from, None of
    those in memory. `loss`: of the final model.
    """

    model_config = ConfigDict(extra="forbid")
    method: ClassVar[str]
    title: ClassVar[str]
    reference: ClassVar[str]

    format: str
    version: Literal[1] = 1
    fastmerge: str
    settings: dict[str, Any]
    candidates: list[str] = Field(min_length=1)
    identities: dict[str, BaseRecord | None]
    rows: list[str]
    tasks: dict[str, float]
    coefficients: list[list[float]] | None
    loss: float | None = None
    notes: list[str] = []

    @property
    def file(self) -> str:
        """What it is called in a folder."""
        return f"{self.method}.json"

    @property
    def pool(self) -> list[str]:
        """The candidates but for the initial solution."""
        return self.candidates[1:]

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The record in a file, or in a folder that a run wrote. InputError where it is none, or not whole."""
        file = Path(path).expanduser()
        file = file / f"{cls.method}.json" if os.path.isdir(file) else file  # which is False where it cannot be seen
        if not holds(file.parent, file.name):
            raise InputError(f"{file}: there is no such record")
        try:
            record = cls.model_validate(read_json(file))
        except ValidationError as error:
            faults = [f"{file}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
            raise InputError(faults) from None
        problems = record._problems()
        if problems:
            raise InputError(f"{file}: {problem}" for problem in problems)
        return record

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all."""
        file = file_to_write(path)
        write_whole(file, (self.model_dump_json(indent=1) + "\n").encode())

    def _problems(self) -> list[str]:
        problems = [] if len({*self.candidates}) == len(self.candidates) else ["two candidates have one name"]
        if self.coefficients is not None and len(self.coefficients) != len(self.rows):
            problems.append(f"has {len(self.coefficients)} rows of coefficients for {len(self.rows)}")
        return problems


class Record(RunRecord):
    """A run of Frank-Wolfe: its coefficients are convex, of each candidate; None of a merge_fn's model. `ended`: why,
    "gap" (at most the tolerance), "steps", "stalled" (no step made the loss less), or "callback"; None: not yet.
    """

    method = "frank_wolfe"
    title = "Frank-Wolfe optimisation"
    reference = "FW-Merging, Chen et al. 2025, arXiv 2503.12649"

    format: Literal["fastmerge.frank_wolfe"] = "fastmerge.frank_wolfe"
    candidates: list[str] = Field(min_length=2)
    tensors: dict[str, TensorRecord]
    steps: list[Step] = []
    ended: Literal["gap", "steps", "stalled", "callback"] | None = None

    def _problems(self) -> list[str]:
        rows, k = self.coefficients or [], len(self.candidates)
        odd = [row for row in rows if len(row) != k or not min(row) >= 0 or not abs(sum(row) - 1) < SUM_ERROR]
        problems = [f"coefficients must be {k} in a row, ≥ 0, with the sum 1, not {row}" for row in odd]
        wrong = [name for name, tensor in self.tensors.items() if tensor.row >= len(self.rows)]
        return problems + super()._problems() + [f"tensor {name!r} is of no row" for name in wrong]


def differences(before: Record, now: Record) -> list[str]:
    """In what another run differs from this one."""
    fields = [name for name in COMPARED if getattr(before, name) != getattr(now, name)]
    old, new = before.settings, now.settings
    changed = [name for name in {**old, **new} if name != "steps" and old.get(name) != new.get(name)]
    told = [f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in changed]
    return [f"{name} has changed" for name in fields] + told
