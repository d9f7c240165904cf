"""The EMR artefact: unified task vector, packed masks, rescalers and each task's own tensors, in one folder.

unified-*.safetensors   τ_uni, one tensor for each merged tensor
masks-*.safetensors     uint8 [K, ceil(N/8)] of the same names, one row a task, bit i of byte j is element 8j + i
tasks/NAME/             a task's own tensors and configuration
emr.json                everything else, as EmrRecord below
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from ..errors import InputError
from .checkpoint import Checkpoint
from .safetensors import FLOATS, TensorInfo, limited, read_header
from .tasks import Number, PlainName, TaskFolder, TasksRecord, read_record

RECORD = "emr.json"


class TensorSums(BaseModel):
    """Per task: Σ|τ_k| and Σ mask_k·|unified|, from which the rescalers come."""

    magnitude: list[Number]
    kept: list[Number]


class EmrRecord(TasksRecord):
    """emr.json."""

    format: Literal["fastmerge.emr"] = "fastmerge.emr"
    version: Literal[1] = 1
    rescalers: list[Number]
    unified: list[PlainName]
    masks: list[PlainName]
    tensors: dict[str, TensorSums]


class EmrArtefact(TaskFolder):
    """An opened artefact: its record and where its tensors lie. Reads headers only."""

    record: EmrRecord

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if not (path / RECORD).is_file():
            raise InputError(f"{path}: no EMR artefact, it has no {RECORD}")
        self.record = read_record(path / RECORD, EmrRecord)
        self.unified = self._tensors(self.record.unified)
        self.masks = self._tensors(self.record.masks)
        self._check()

    def check_base(self, base: Checkpoint, option: str, own: set[str]) -> None:
        """InputError where base is not the one that the artefact was made with; `own` are the tasks' own tensors."""
        problems = self.base_problems(base, option, self.unified.values())
        problems += self.unknown_problems(base, self.unified, own)
        if problems:
            raise InputError(problems)

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
        wrong = [unified for unified in self.unified.values() if unified.dtype not in FLOATS]
        problems += limited(
            wrong, lambda t: f"{self.path}: the unified {t.name!r} is {t.dtype}, no float; the artefact is damaged"
        )
        if set(record.tensors) != set(self.unified):
            problems.append(f"{self.path / RECORD}: its tensors are not those of the files; the artefact is damaged")
        if problems:
            raise InputError(problems)
