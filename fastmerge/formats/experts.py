"""Experts: a backbone, which is an ordinary model folder, with a sparse expert per task.

*.safetensors, config.json, …   the backbone, a merged model
experts/NAME.safetensors        for each tensor T of N elements of which the expert changes k: T/counts (I32
                                [ceil(N/65 536)], how many of each block of 65 536), T/offsets (U16 [k], increasing
                                within a block) and T/values ([k]); or where it changes all, by a matrix [R, C] of N
                                elements and low rank r: T/up ([R, r]) and T/down ([r, C])
tasks/NAME/                     a task's own tensors and configuration
experts.json                    everything else, as ExpertsRecord below

An expert of weight w adds w · scale · values to the elements of the backbone (FREE-Merging, arXiv 2411.16815), or
w · scale · up · down to its tensor (Twin-Merging, arXiv 2406.15479).
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
SPARSE = ("counts", "offsets", "values")
FACTORS = ("up", "down")
PARTS = (*SPARSE, *FACTORS)


class ExpertRecord(BaseModel):
    """One task's expert: its file in experts/, its scale μ, and what was kept: a density, or a rank."""

    file: PlainName
    scale: float = Field(allow_inf_nan=False)
    density: float | None = None
    scope: Literal["tensor", "global", "row"] | None = None
    rank: int | None = None


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


class StoredFactors(NamedTuple):
    """Where the factors of one tensor's part of an expert lie."""

    up: TensorInfo
    down: TensorInfo


class ExpertsFolder(TaskFolder):
    """An opened folder: its record, its backbone, and per task and tensor where the expert lies. Reads headers only."""

    record: ExpertsRecord

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if not (path / RECORD).is_file():
            raise InputError(f"{path}: no folder of experts, it has no {RECORD}")
        self.record = read_record(path / RECORD, ExpertsRecord)
        self.backbone = open_checkpoint(path, "backbone")
        self.experts: dict[str, dict[str, StoredExpert | StoredFactors]] = {}
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
        problems += self._kind_problems()
        if problems:
            raise InputError(problems)

    def _kind_problems(self) -> list[str]:
        """Experts change a tensor all in one way."""
        kinds: dict[str, set[type]] = {}
        for parts in self.experts.values():
            for name, stored in parts.items():
                kinds.setdefault(name, set()).add(type(stored))
        mixed = [name for name, found in kinds.items() if len(found) > 1]
        return limited(
            mixed, lambda n: f"{self.path}: {n!r} is changed by elements for one task, by a product for another"
        )

    def check_base(self, base: Checkpoint, option: str) -> None:
        """InputError where base is not the model that the experts were cut from."""
        changed = {name for parts in self.experts.values() for name in parts}
        problems = self.base_problems(base, option, [self.backbone.tensors[name] for name in sorted(changed)])
        if problems:
            raise InputError(problems)

    def read(self, task: str, files: Inputs) -> dict[str, tuple[Tensor, ...]]:
        """(counts, offsets, values) or (up, down) of each tensor, mapped, after a look at every element they name."""
        found: dict[str, tuple[Tensor, ...]] = {}
        wrong = []
        for name, stored in self.experts[task].items():
            found[name] = tuple(files.whole(info) for info in stored)
            if isinstance(stored, StoredExpert):
                problem = elements_problem(self.backbone.tensors[name].numel, *found[name][:2])
                wrong += [(name, problem)] if problem else []
        if wrong:
            file = self.path / FOLDER / self.record.experts[task].file
            raise InputError(limited(wrong, lambda w: f"expert {task}: {file}: {w[0]!r}: {w[1]}; the file is damaged"))
        return found

    def _open(self, file: Path) -> dict[str, StoredExpert | StoredFactors]:
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
        return {
            name: StoredFactors(**parts) if "up" in parts else StoredExpert(**parts) for name, parts in stored.items()
        }

    def _problem(self, name: str, parts: dict[str, TensorInfo]) -> str | None:
        theta = self.backbone.tensors.get(name)
        if theta is None or theta.dtype not in FLOATS:
            return f"the backbone has no such tensor of weights{nearest(name, self.backbone.tensors)}"
        if set(parts) == set(FACTORS):
            return _factors_problem(theta, parts["up"], parts["down"])
        if set(parts) != set(SPARSE):
            return f"expected {', '.join(SPARSE)}, found {', '.join(sorted(parts))}; the file is damaged"
        k = parts["values"].numel
        expected = (((-(-theta.numel // BLOCK),), {"I32"}), ((k,), {"U16"}), ((k,), FLOATS))
        for part, (shape, dtypes) in zip(SPARSE, expected, strict=True):
            info = parts[part]
            if info.shape != shape or info.dtype not in dtypes:
                known = " or ".join(sorted(dtypes))
                return f"{part} must be {known} {list(shape)}, it is {info.dtype} {list(info.shape)}"
        return None


def _factors_problem(theta: TensorInfo, up: TensorInfo, down: TensorInfo) -> str | None:
    """What is wrong with the factors of a change of theta."""
    shapes = list(up.shape), list(down.shape)
    fit = len(up.shape) == len(down.shape) == 2 and up.shape[1] == down.shape[0] > 0
    if not fit or up.shape[0] * down.shape[1] != theta.numel or not {up.dtype, down.dtype} <= FLOATS:
        return f"up and down are {up.dtype} {shapes[0]} and {down.dtype} {shapes[1]}, no factors of {list(theta.shape)}"
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


def expert_layout(
    task: str, tensors: Iterable[tuple[str, int, int | tuple[int, int, int], str]], folder: str = ""
) -> Layout:
    """The file of a task's expert, known before its data: of each tensor (name, N, k or (R, r, C), dtype of values).

    folder: "NAME/" of the folder of experts, where it lies in another.
    """
    parts: list[tuple[str, str, tuple[int, ...]]] = []
    for name, numel, k, dtype in tensors:
        if isinstance(k, tuple):
            parts.append((f"{name}/up", dtype, k[:2]))
            parts.append((f"{name}/down", dtype, k[1:]))
            continue
        parts.append((f"{name}/counts", "I32", (-(-numel // BLOCK),)))
        parts.append((f"{name}/offsets", "U16", (k,)))
        parts.append((f"{name}/values", dtype, (k,)))
    stamp = {"fastmerge.format": "experts", "fastmerge.format_version": "1"}
    return plan_layout(parts, task, 1 << 62, stamp, f"{folder}{FOLDER}/")
