"""Experts: a backbone, which is an ordinary model folder, with a sparse expert per task.

*.safetensors, config.json, …   the backbone, a merged model
experts/NAME.safetensors        for each tensor T of N elements of which the expert changes k: T/counts (I32
                                [ceil(N/65 536)], how many of each block of 65 536), T/offsets (U16 [k], increasing
                                within a block) and T/values ([k])
tasks/NAME/                     a task's own tensors and configuration
experts.json                    everything else, as ExpertsRecord below

An expert of weight w adds w · scale · values to the elements of the backbone (FREE-Merging, arXiv 2411.16815).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, Field

from ..errors import InputError, nearest
from .checkpoint import Checkpoint, open_checkpoint, same_files
from .layout import Layout, plan_layout
from .safetensors import FLOATS, TensorInfo, limited, read_header
from .tasks import PlainName, TaskFolder, TasksRecord, read_record

if TYPE_CHECKING:
    from torch import Tensor

    from .mapping import Inputs

RECORD = "experts.json"
FOLDER = "experts"
BLOCK = 65_536  # elements that an offset counts within
PARTS = ("counts", "offsets", "values")


class ExpertRecord(BaseModel):
    """One task's expert: its file in experts/, its scale μ, and what was kept of the task vector."""

    file: PlainName
    scale: float = Field(allow_inf_nan=False)
    density: float
    scope: Literal["tensor", "global", "row"]


class ExpertsRecord(TasksRecord):
    """experts.json. `backbone` is the identity of the model files beside it."""

    format: Literal["fastmerge.experts"] = "fastmerge.experts"
    version: Literal[1] = 1
    experts: dict[str, ExpertRecord]
    backbone: list[dict[str, Any]]


class StoredExpert(NamedTuple):
    """Where one tensor's part of an expert lies."""

    counts: TensorInfo
    offsets: TensorInfo
    values: TensorInfo


class ExpertsFolder(TaskFolder):
    """An opened folder: its record, its backbone, and per task and tensor where the expert lies. Reads headers only."""

    record: ExpertsRecord

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if not (path / RECORD).is_file():
            raise InputError(f"{path}: no folder of experts, it has no {RECORD}")
        self.record = read_record(path / RECORD, ExpertsRecord)
        self.backbone = open_checkpoint(path, "backbone")
        self.experts: dict[str, dict[str, StoredExpert]] = {}
        problems = []
        if set(self.record.experts) != set(self.tasks):
            problems.append(f"{path / RECORD}: its experts are not those of its tasks; the folder is damaged")
        if not same_files(self.record.backbone, self.backbone):
            problems.append(f"{path}: its model is not the backbone that the experts were made for; restore that one")
        for task, expert in self.record.experts.items():
            try:
                self.experts[task] = self._open(path / FOLDER / expert.file)
            except InputError as error:  # noqa: PERF203 - the problems of all files are wanted
                problems += [f"expert {task}: {problem}" for problem in error.problems]
        if problems:
            raise InputError(problems)

    def check_base(self, base: Checkpoint, option: str) -> None:
        """InputError where base is not the model that the experts were cut from."""
        changed = {name for parts in self.experts.values() for name in parts}
        problems = self.base_problems(base, option, [self.backbone.tensors[name] for name in sorted(changed)])
        if problems:
            raise InputError(problems)

    def read(self, task: str, files: Inputs) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """(counts, offsets, values) of each tensor, mapped, after a look at every element that they name."""
        found, wrong = {}, []
        for name, stored in self.experts[task].items():
            counts, offsets, values = (files.whole(info) for info in stored)
            problem = elements_problem(self.backbone.tensors[name].numel, counts, offsets)
            found[name] = (counts, offsets, values)
            wrong += [(name, problem)] if problem else []
        if wrong:
            file = self.path / FOLDER / self.record.experts[task].file
            raise InputError(limited(wrong, lambda w: f"expert {task}: {file}: {w[0]!r}: {w[1]}; the file is damaged"))
        return found

    def _open(self, file: Path) -> dict[str, StoredExpert]:
        """The tensors of an expert's file, each with all its parts in the shapes that the backbone asks for."""
        if not file.is_file():
            raise InputError(f"{file}: is missing")
        stored: dict[str, dict[str, TensorInfo]] = {}
        for info in read_header(file).tensors.values():
            name, _, part = info.name.rpartition("/")
            stored.setdefault(name, {})[part] = info
        wrong = [(name, problem) for name, parts in stored.items() if (problem := self._problem(name, parts))]
        if wrong:
            raise InputError(limited(wrong, lambda entry: f"{file}: {entry[0]!r}: {entry[1]}"))
        return {name: StoredExpert(**parts) for name, parts in stored.items()}

    def _problem(self, name: str, parts: dict[str, TensorInfo]) -> str | None:
        theta = self.backbone.tensors.get(name)
        if theta is None or theta.dtype not in FLOATS:
            return f"the backbone has no such tensor of weights{nearest(name, self.backbone.tensors)}"
        if set(parts) != set(PARTS):
            return f"expected {', '.join(PARTS)}, found {', '.join(sorted(parts))}; the file is damaged"
        k = parts["values"].numel
        expected = (((-(-theta.numel // BLOCK),), {"I32"}), ((k,), {"U16"}), ((k,), FLOATS))
        for part, (shape, dtypes) in zip(PARTS, expected, strict=True):
            info = parts[part]
            if info.shape != shape or info.dtype not in dtypes:
                known = " or ".join(sorted(dtypes))
                return f"{part} must be {known} {list(shape)}, it is {info.dtype} {list(info.shape)}"
        return None


def elements_problem(numel: int, counts: Tensor, offsets: Tensor) -> str | None:
    """What is wrong with counts and offsets as a choice of elements of a tensor of `numel`."""
    ends = counts.long().cumsum(0)
    total = int(ends[-1]) if ends.numel() else 0
    if bool((counts < 0).any()) or total != offsets.numel():
        return f"its counts add up to {total}, there are {offsets.numel()} offsets"
    within = offsets.int()
    rising = within[1:] > within[:-1]
    edges = ends[(ends > 0) & (ends < total)]  # between the last element of a block and the next one's first
    rising[edges - 1] = True
    if not bool(rising.all()):
        return "its offsets do not increase within a block"
    last = (len(counts) - 1) * BLOCK
    if total and int(counts[-1]) and last + int(within[-1]) >= numel:
        return f"its offsets go beyond the tensor's {numel} elements"
    return None


def expert_layout(task: str, tensors: Iterable[tuple[str, int, int, str]], folder: str = "") -> Layout:
    """The file of a task's expert, known before its data: of each tensor (name, N, k, dtype of the values).

    folder: "NAME/" of the folder of experts, where it lies in another.
    """
    parts: list[tuple[str, str, tuple[int, ...]]] = []
    for name, numel, k, dtype in tensors:
        parts.append((f"{name}/counts", "I32", (-(-numel // BLOCK),)))
        parts.append((f"{name}/offsets", "U16", (k,)))
        parts.append((f"{name}/values", dtype, (k,)))
    stamp = {"fastmerge.format": "experts", "fastmerge.format_version": "1"}
    return plan_layout(parts, task, 1 << 62, stamp, f"{folder}{FOLDER}/")
