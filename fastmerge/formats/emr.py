"""The EMR artefact: unified task vector, packed masks, rescalers and each task's own tensors, in one folder.

unified-*.safetensors   τ_uni, one tensor for each merged tensor
masks-*.safetensors     uint8 [K, ceil(N/8)] of the same names, one row a task, bit i of byte j is element 8j + i
tasks/NAME/             a task's own tensors (model.safetensors) and config.json
emr.json                everything else, as EmrRecord below
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from ..errors import InputError
from .checkpoint import read_json
from .safetensors import TensorInfo, read_header

RECORD = "emr.json"


class TensorSums(BaseModel):
    """Per task: Σ|τ_k| and Σ mask_k·|unified|, from which the rescalers come."""

    magnitude: list[float]
    kept: list[float]


class BaseRecord(BaseModel):
    """The base model that the task vectors were taken from."""

    source: str
    files: list[dict[str, Any]]


class EmrRecord(BaseModel):
    """emr.json. `aliases` are names tied to a merged tensor, `copied` integer tensors that stay base's, `replaced`
    base's tensors in whose place a task has its own."""

    model_config = ConfigDict(extra="ignore")

    format: Literal["fastmerge.emr"] = "fastmerge.emr"
    version: Literal[1] = 1
    fastmerge: str
    method: str
    params: dict[str, Any]
    tasks: list[str]
    rescalers: list[float]
    base: BaseRecord
    unified: list[str]
    masks: list[str]
    tensors: dict[str, TensorSums]
    aliases: dict[str, list[str]]
    copied: list[str]
    replaced: list[str]

    @field_validator("tasks", "unified", "masks")
    @classmethod
    def _plain_names(cls, names: list[str]) -> list[str]:
        for name in names:
            if name != Path(name).name or name in ("", ".", "..") or "\\" in name:
                raise ValueError(f"{name!r} would leave the folder")
        return names


class EmrArtefact:
    """An opened artefact: its record and where its tensors lie. Reads headers only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / RECORD).is_file():
            raise InputError(f"{path}: no EMR artefact, it has no {RECORD}")
        try:
            self.record = EmrRecord.model_validate(read_json(path / RECORD))
        except ValidationError as error:
            detail = error.errors()[0]
            where = ".".join(str(part) for part in detail["loc"])
            raise InputError(f"{path / RECORD}: {where}: {detail['msg']}") from None
        self.unified = self._tensors(self.record.unified)
        self.masks = self._tensors(self.record.masks)
        self._check()

    def own_tensors(self, task: str) -> dict[str, TensorInfo]:
        """The task's own tensors, such as its classification head."""
        file = self.path / "tasks" / task / "model.safetensors"
        return read_header(file).tensors if file.is_file() else {}

    def config(self, task: str) -> dict[str, Any] | None:
        """The task's own config.json."""
        file = self.path / "tasks" / task / "config.json"
        return read_json(file) if file.is_file() else None

    def _tensors(self, files: list[str]) -> dict[str, TensorInfo]:
        return {name: info for file in files for name, info in read_header(self.path / file).tensors.items()}

    def _check(self) -> None:
        record, problems = self.record, []
        if len(record.rescalers) != len(record.tasks):
            problems.append(f"{self.path / RECORD}: {len(record.tasks)} tasks need as many rescalers")
        for name, unified in self.unified.items():
            masks = self.masks.get(name)
            shape = (len(record.tasks), -(-unified.numel // 8))
            if masks is None or masks.shape != shape or masks.dtype != "U8":
                problems.append(f"{self.path}: the masks of {name!r} must be U8 {list(shape)}; the artefact is damaged")
        if set(record.tensors) != set(self.unified):
            problems.append(f"{self.path / RECORD}: its tensors are not those of the files; the artefact is damaged")
        if problems:
            raise InputError(problems)
