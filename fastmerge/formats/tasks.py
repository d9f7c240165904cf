"""What the folders of several tasks have in common: their record, and each task's own tensors and configuration.

tasks/NAME/    a task's own tensors (model.safetensors), such as its classification head, and its config.json
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    ValidationError,
    field_validator,
)

from ..errors import InputError, nearest
from .checkpoint import Checkpoint, read_json, same_files
from .safetensors import FLOATS, TensorInfo, limited, read_header


def _plain(name: str) -> str:
    if name != Path(name).name or name in ("", ".", "..") or "\\" in name:
        raise ValueError(f"{name!r} would leave the folder")
    return name


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# JSON has no word for NaN; null is read as NaN again.
Number = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(_finite, return_type=float | None),
]
PlainName = Annotated[str, AfterValidator(_plain)]  # of a file or folder, with no way out of the one it is in


class BaseRecord(BaseModel):
    """The base model that the task vectors were taken from."""

    source: str
    files: list[dict[str, Any]]


class TasksRecord(BaseModel):
    """`aliases` are names tied to a merged tensor, `copied` integer tensors that stay base's, `replaced` base's tensors
    in whose place a task has its own."""

    model_config = ConfigDict(extra="ignore")

    fastmerge: str
    method: str
    params: dict[str, Any]
    tasks: list[PlainName]
    base: BaseRecord
    aliases: dict[str, list[str]]
    copied: list[str]
    replaced: list[str]

    @field_validator("tasks")
    @classmethod
    def _different(cls, tasks: list[str]) -> list[str]:
        if len(set(tasks)) != len(tasks):
            raise ValueError("two tasks have one name")
        return tasks


Record = TypeVar("Record", bound=BaseModel)


def read_content(file: Path) -> dict[str, Any]:
    """The JSON of a record of unknown origin.

    It may have numbers for every tensor and task, and so be as large as the weights beside it.
    """
    beside = [weights.stat().st_size for weights in file.parent.glob("*.safetensors") if weights.is_file()]
    return read_json(file, sum(beside))


def read_record(file: Path, kind: type[Record]) -> Record:
    """A record from a file of unknown origin."""
    try:
        return kind.model_validate(read_content(file))
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(str(part) for part in detail["loc"])
        raise InputError(f"{file}: {where}: {detail['msg']}") from None


class TaskFolder:
    """A folder of several tasks; `record` is set by the kinds of it."""

    record: TasksRecord

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def tasks(self) -> list[str]:
        return self.record.tasks

    def own_tensors(self, task: str) -> dict[str, TensorInfo]:
        """The task's own tensors, such as its classification head."""
        file = self.path / "tasks" / task / "model.safetensors"
        return read_header(file).tensors if file.is_file() else {}

    def config(self, task: str) -> dict[str, Any] | None:
        """The task's own config.json."""
        file = self.path / "tasks" / task / "config.json"
        return read_json(file) if file.is_file() else None

    def need(self, tasks: Iterable[str]) -> None:
        """InputError with the nearest right names for tasks that are not here."""
        problems = [
            f"{self.path}: no task {name!r}{nearest(str(name), self.tasks)}; it has {', '.join(self.tasks)}"
            for name in tasks
            if name not in self.tasks
        ]
        if problems:
            raise InputError(problems)

    def base_problems(self, base: Checkpoint, option: str, merged: Iterable[TensorInfo]) -> list[str]:
        """Whether this is the base model that the tasks were taken from, and has the tensors `merged`."""
        record, problems = self.record.base, []
        if not same_files(record.files, base):
            problems.append(
                f"{self.path}: {base.path} is not the base model it was made with ({record.source}); "
                f"pass that one with {option}"
            )
        wrong = [info for info in merged if not _has(base, info)]
        return problems + limited(
            wrong, lambda info: f"{self.path}: base has no tensor {info.name!r} of shape {list(info.shape)}"
        )

    def unknown_problems(self, base: Checkpoint, merged: Collection[str], own: Iterable[str]) -> list[str]:
        """Tensors of base that the record says nothing of."""
        record = self.record
        known = {*merged, *record.copied, *record.replaced, *own}.union(*record.aliases.values())
        unknown = [name for name in base.tensors if name not in known]
        return limited(unknown, lambda name: f"{self.path}: says nothing of base's tensor {name!r}")


def _has(base: Checkpoint, info: TensorInfo) -> bool:
    stored = base.tensors.get(info.name)
    return stored is not None and stored.shape == info.shape and stored.dtype in FLOATS
