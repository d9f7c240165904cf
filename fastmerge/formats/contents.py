"""What a folder of tasks has for a model: the weights that all tasks share, and those that a task has for itself."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from . import emr, experts
from .checkpoint import Checkpoint, open_checkpoint
from .emr import EmrArtefact
from .experts import ExpertsFolder
from .folder import holds
from .safetensors import FLOATS, Header, TensorInfo, read_header
from .spec import recorded
from .tasks import TasksRecord, read_record

RECORDS = (emr.RECORD, experts.RECORD)


@dataclass(frozen=True, slots=True)
class Contents:
    """`source` is the model without a task: base, or the backbone.

    Of it, `shared` are the weights, `copied` the integer tensors, `home` the tensors in whose place a task may have its
    own; `aliases` are further names of shared ones. `own` are each task's.
    """

    folder: EmrArtefact | ExpertsFolder
    source: Checkpoint
    shared: dict[str, TensorInfo]
    copied: dict[str, TensorInfo]
    home: dict[str, TensorInfo]
    aliases: dict[str, list[str]]
    own: dict[str, dict[str, TensorInfo]]

    def headers(self, tasks: Collection[str]) -> list[Header]:
        """Of all files that these tasks take something from, the source's first."""
        infos = [info for task in tasks for info in self.own[task].values()]
        if isinstance(self.folder, EmrArtefact):
            infos += [*self.folder.unified.values(), *self.folder.masks.values()]
        else:
            infos += [info for t in tasks for parts in self.folder.experts[t].values() for info in parts]
        return [*self.source.headers, *map(read_header, dict.fromkeys(info.file for info in infos))]


def recorded_tasks(path: Path) -> list[str] | None:
    """The tasks of a folder; None where it is not one of tasks."""
    file = next((path / name for name in RECORDS if holds(path, name)), None)
    return None if file is None else read_record(file, TasksRecord).tasks


def need_tasks(path: Path) -> list[str]:
    """The tasks of a folder, or an InputError."""
    found = recorded_tasks(path)
    if found is None:
        raise _no_tasks(path)
    return found


def _no_tasks(path: Path) -> InputError:
    kind = f"has neither {' nor '.join(RECORDS)}" if path.is_dir() else "is no folder"
    return InputError(f"{path}: {kind}; give the folder of an EMR merge or of experts")


def _recorded_base(folder: EmrArtefact, option: str) -> str:
    """Where an artefact's base was."""
    try:
        return recorded(folder.record.base.source, "base")
    except InputError as error:
        raise InputError(f"{error}; say where it is now by {option}") from None


def open_contents(path: Path, base: str | Path | None, option: str = "base=") -> Contents:
    """Open an EMR artefact, whose base lies where it says or at `base`, or a folder of experts. Headers only.

    option: how the caller is told to say where base is.
    """
    folder: EmrArtefact | ExpertsFolder
    if holds(path, emr.RECORD):
        folder = EmrArtefact(path)
        source = open_checkpoint(base or _recorded_base(folder, option), "base")
        own = {task: folder.own_tensors(task) for task in folder.tasks}
        folder.check_base(source, option, {name for tensors in own.values() for name in tensors})
        merged = set(folder.unified)
    elif holds(path, experts.RECORD):
        folder = ExpertsFolder(path)
        source = folder.backbone
        own = {task: folder.own_tensors(task) for task in folder.tasks}
        if base is not None:
            folder.check_base(open_checkpoint(base, "base"), option)
        merged = {name for name, info in source.tensors.items() if info.dtype in FLOATS}
        merged -= {*folder.record.replaced}.union(*folder.record.aliases.values())
    else:
        raise _no_tasks(path)
    record = folder.record
    return Contents(
        folder,
        source,
        shared={name: info for name, info in source.tensors.items() if name in merged},
        copied={name: source.tensors[name] for name in record.copied if name in source.tensors},
        home={name: source.tensors[name] for name in record.replaced if name in source.tensors},
        aliases={name: names for name, names in record.aliases.items() if name in merged},
        own=own,
    )
