"""fastmerge.json: how a folder was made, from what, and what it holds. Enough to make it again, and to verify it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..errors import InputError
from .checkpoint import read_json
from .folder import holds
from .tasks import Number

RECORD = "fastmerge.json"


class FileRecord(BaseModel):
    """A file of weights; `sha256` is of all of it, where asked for."""

    file: str
    size: int
    header_sha256: str
    sha256: str | None = None

    @field_validator("file")
    @classmethod
    def _inside(cls, name: str) -> str:
        if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name:
            raise ValueError(f"{name!r} would leave the folder")
        return name


class CheckpointRecord(BaseModel):
    """An input, where it was (a path in full, or the Hub's name with its commit), and its files."""

    source: str
    files: list[FileRecord]


class TensorsRecord(BaseModel):
    """Parameters that hold for tensors of some names alone."""

    match: list[str]
    parameters: dict[str, Any]


class MergeRecord(BaseModel):
    """`base` and `models` in the order of merging; `backend` where it was a GPU's; `results` the method's numbers per
    model, such as rescalers; `files` those of this folder; `mergekit` is the configuration of mergekit's that the merge
    was made by, if it was."""

    model_config = ConfigDict(extra="ignore")

    format: Literal["fastmerge.merge"] = "fastmerge.merge"
    version: Literal[1] = 1
    fastmerge: str
    backend: Literal["cuda"] | None = None
    method: str
    reference: str = Field(default="", description="where the method is from")
    params: dict[str, Any]
    tensors: list[TensorsRecord] = []
    mergekit: dict[str, Any] = {}
    task_specific: list[str] = []
    rename: dict[str, list[tuple[str, str]]] = {}
    vocab: Literal["base", "pad"] | None = None
    dtype: str | None = None
    base: CheckpointRecord | None = None
    models: dict[str, CheckpointRecord] = Field(min_length=1)
    results: dict[str, list[Number]] = {}
    files: list[FileRecord]

    @property
    def inputs(self) -> dict[str, CheckpointRecord]:
        """All inputs by their names, base first."""
        return ({} if self.base is None else {"base": self.base}) | self.models

    def content(self) -> dict[str, Any]:
        """The record as JSON; what does not apply is left out."""
        dumped = self.model_dump(mode="json", exclude_none=True)
        return {key: value for key, value in dumped.items() if value not in ([], {})}


def read_record(folder: Path) -> MergeRecord:
    """The record of a folder, or an InputError."""
    file = folder / RECORD
    if not holds(folder, RECORD):
        raise InputError(f"{folder}: was not made by fastmerge merge, it has no {RECORD}")
    try:
        return MergeRecord.model_validate(read_json(file))
    except ValidationError as error:
        problems = [f"{file}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise InputError(problems) from None
