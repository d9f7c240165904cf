"""One task's model as an ordinary folder.

From an EMR artefact: base + rescaler · mask ⊙ unified; from a folder of experts: backbone + scale · values at the
expert's elements.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from torch import Tensor

from .. import __version__, ops
from ..errors import InputError, attempt
from ..formats.checkpoint import Checkpoint
from ..formats.checkpoint import places as places_of
from ..formats.contents import Contents, open_contents
from ..formats.emr import EmrArtefact
from ..formats.experts import ExpertsFolder
from ..formats.folder import copy_side_files, encoded, printable, write_json
from ..formats.layout import Layout, plan_layout
from ..formats.mapping import Inputs
from ..formats.record import RECORD, CheckpointRecord, FileRecord, MergeRecord
from ..formats.safetensors import Header, TensorInfo
from ..formats.spec import local_path, recorded
from ..forms import well_formed
from ..methods import get, names
from ..recipe.destination import output_folder, output_problems
from ..recipe.memory import MAX_CHUNK
from .identity import backend, digest, input_files, layout_files
from .journal import Fingerprint
from .publish import Publication
from .report import Report
from .run_pass import Progress, expect, run_pass
from .side_files import METHOD, card
from .stream import Source, Target, Work, copy

ARTEFACT = "artefact"  # what a record calls the folder of tasks
Run = Callable[[int, list[Tensor], list[Tensor]], None]
Making = Callable[[TensorInfo], tuple[tuple[Source, ...], Run]]  # of a tensor of the source: what is read, and done


@well_formed
def task(
    artefact: str | Path,
    name: str,
    out: str | Path,
    *,
    base: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write the model of task `name` of an EMR artefact, or of a folder of experts, to the folder `out`.

    Its tensors are, to the bit, those that a live model (`fm.runtime.load`) has with the task in force, and `verify`
    checks them against those again by the record that is written beside them, fastmerge.json. base: where an
    artefact's base model is now, if no longer where it says; of a folder of experts, what they must have been cut from.
    resume: go on where the same call was stopped. Raises InputError before any work where anything does not fit,
    MergeError where a file cannot be read or written, or has changed meanwhile; then no output is left.
    """
    begin = time.perf_counter()
    destination, made = _opened(artefact, name, out, base, overwrite=overwrite, resume=resume)
    layout, inputs = made.layout, Inputs(made.headers, resumable=True)
    works = made.works(inputs)
    with Publication(destination, _fingerprint(made), overwrite=overwrite, resume=resume) as publication:
        expect(progress, sum(work.bytes_read for work in works))
        moved = run_pass(works, layout.files, publication, inputs, MAX_CHUNK, progress)
        inputs.check_unchanged()
        if not publication.published:
            publication.clear_beside(layout.files)
            _write_side_files(made, publication.folder, destination.name)
    return Report(
        out=str(out),
        method=METHOD,
        models=[name],
        tensors=len(works),
        parameters=sum(work.numel for work in works),
        bytes_read=moved.read + _expert_bytes(made.contents.folder, name),
        bytes_written=moved.written,
        seconds=time.perf_counter() - begin,
        backend=backend(),
        notes=publication.notes,
    )


@dataclass(frozen=True)
class Made:
    """What a task's model is made of, and how."""

    name: str
    contents: Contents

    @cached_property
    def headers(self) -> list[Header]:
        """Of the files that are read."""
        return self.contents.headers([self.name])

    @cached_property
    def layout(self) -> Layout:
        """The model's files."""
        tensors = self.contents.source.tensors | self.contents.own[self.name]
        return plan_layout([(t.name, t.dtype, t.shape) for t in tensors.values()])

    @property
    def files(self) -> list[FileRecord]:
        """The same, as they are recorded."""
        return [
            FileRecord(file=file.name, size=file.size, header_sha256=hashlib.sha256(file.header[8:]).hexdigest())
            for file in self.layout.files
        ]

    @property
    def inputs(self) -> dict[str, Checkpoint]:
        """What is read, as the record calls it: base, where that is apart, and the artefact."""
        folder, source = self.contents.folder, self.contents.source
        apart = {"base": source} if isinstance(folder, EmrArtefact) else {}
        own = tuple(header for header in self.headers if not (apart and header in source.headers))
        artefact = Checkpoint(folder.path, ARTEFACT, {}, {}, own, (), place=os.path.abspath(folder.path))
        return apart | {ARTEFACT: artefact}

    def works(self, inputs: Inputs) -> list[Work]:
        """The work on every tensor of the source, in the order of its files, then on the task's own."""
        name, contents, folder, layout = self.name, self.contents, self.contents.folder, self.layout
        making = _modulating(folder, name) if isinstance(folder, EmrArtefact) else _adding(folder, name, inputs)
        own, aliases = contents.own[name], contents.aliases
        aliased = {alias for canonical, names in aliases.items() if canonical not in own for alias in names}
        works = []
        for info in contents.source.tensors.values():
            if info.name in aliased or info.name in own:
                continue
            names = [n for n in (info.name, *aliases.get(info.name, ())) if n in layout.places and n not in own]
            sources, run = making(info) if info.name in contents.shared else ((Source(info),), _copy)
            works.append(Work(info.numel, sources, (Target(tuple(layout.places[n] for n in names), info.dtype),), run))
        heads = [(t, Target((layout.places[t.name],), t.dtype)) for t in own.values()]
        return works + [Work(t.numel, (Source(t),), (target,), _copy) for t, target in heads]


def made_of(folder: Path, record: MergeRecord, places: Mapping[str, str | Path]) -> Made:
    """What a record says that a folder is made of, where the record says that it lies, or in other places."""
    if ARTEFACT not in record.models:
        raise InputError(f"{folder}: its record names no {ARTEFACT}; write it again by fastmerge task")
    sources = {label: str(places.get(label) or recorded(given.source, label)) for label, given in record.inputs.items()}
    try:
        contents = open_contents(local_path(sources[ARTEFACT]), sources.get("base"), "--base")
    except InputError as error:
        raise InputError([*error.problems, f"say where they are now by --model {ARTEFACT}=PATH, --base PATH"]) from None
    name = str(record.params.get("task"))
    contents.folder.need([name])
    return Made(name, contents)


def _opened(
    artefact: str | Path, name: str, out: str | Path, base: str | Path | None, *, overwrite: bool, resume: bool
) -> tuple[Path, Made]:
    """Where the model goes, and what it is made of; raises InputError with all that does not fit."""
    problems: list[str] = []
    destination = attempt(problems, lambda: output_folder(out))
    contents = attempt(problems, lambda: open_contents(local_path(artefact), base, "--base"))
    if contents is not None:
        attempt(problems, lambda: contents.folder.need([name]))
    if problems or contents is None or destination is None:
        if destination is not None:
            problems += output_problems(destination, 0, [], overwrite=overwrite, resume=resume)
        raise InputError(problems)
    made = Made(name, contents)
    problems += _alias_problems(contents)
    places = [*contents.source.places, *places_of(contents.folder.path), *(header.file for header in made.headers)]
    problems += output_problems(destination, made.layout.total_bytes, places, overwrite=overwrite, resume=resume)
    if problems:
        raise InputError(problems)
    return destination, made


def _fingerprint(made: Made) -> Fingerprint:
    """Everything that decides the bytes of the model."""
    record = made.contents.folder.record
    found = {"task": made.name, "fastmerge": __version__, "backend": backend()}
    found |= {"the record": digest(record.model_dump())}
    return found | input_files(_by_owner(made.contents, made.name, made.headers)) | layout_files([made.layout])


def _copy(_: int, sources: list[Tensor], targets: list[Tensor]) -> None:
    copy(sources[0], targets[0])


def _modulating(artefact: EmrArtefact, name: str) -> Making:
    row = artefact.tasks.index(name)
    scale = artefact.record.rescalers[row]

    def modulate(_: int, sources: list[Tensor], targets: list[Tensor]) -> None:
        base, unified, mask = sources
        ops.modulate(base, unified, mask, scale, out=targets[0])

    def making(info: TensorInfo) -> tuple[tuple[Source, ...], Run]:
        unified, masks = artefact.unified[info.name], artefact.masks[info.name]
        return (Source(info), Source(unified), Source(masks, row)), modulate

    return making


def _adding(folder: ExpertsFolder, name: str, inputs: Inputs) -> Making:
    experts = {tensor: ops.expert_of(parts) for tensor, parts in folder.read(name, inputs).items()}
    scale = folder.record.experts[name].scale

    def making(info: TensorInfo) -> tuple[tuple[Source, ...], Run]:
        expert = experts.get(info.name)
        if expert is None:
            return (Source(info),), _copy
        if isinstance(expert, ops.LowRank):
            return (Source(info),), partial(_multiply, expert, scale)
        ends = [0, *expert.counts.long().cumsum(0).tolist()]

        def add(start: int, sources: list[Tensor], targets: list[Tensor]) -> None:
            copy(sources[0], targets[0])
            ops.scatter_add(targets[0], _within(expert, ends, start, start + targets[0].numel()), scale)

        return (Source(info),), add

    return making


def _multiply(expert: ops.LowRank, scale: float, start: int, sources: list[Tensor], targets: list[Tensor]) -> None:
    ops.low_rank(sources[0], *expert, scale, first=start, out=targets[0])


def _within(expert: ops.Expert, ends: list[int], start: int, stop: int) -> ops.Expert:
    """The part of an expert that lies in elements start to stop of its tensor; start is that of a block."""
    first, last = start // ops.BLOCK, -(-stop // ops.BLOCK)
    a, b = ends[first], ends[last]
    return ops.Expert(expert.counts[first:last], expert.offsets[a:b], expert.values[a:b])


def _expert_bytes(folder: EmrArtefact | ExpertsFolder, name: str) -> int:
    if isinstance(folder, EmrArtefact):
        return 0
    return sum(info.nbytes for parts in folder.experts[name].values() for info in parts)


def _alias_problems(contents: Contents) -> list[str]:
    """Tied names must be stored alike: they are written as one."""
    tensors = contents.source.tensors
    return [
        f"{contents.folder.path}: {alias!r} is recorded as tied to {name!r}, but stored in another shape or dtype; the "
        "folder is damaged"
        for name, aliases in contents.aliases.items()
        for alias in aliases
        if alias in tensors
        and (tensors[alias].shape, tensors[alias].dtype) != (tensors[name].shape, tensors[name].dtype)
    ]


def _by_owner(contents: Contents, name: str, headers: list[Header]) -> dict[str, list[Header]]:
    """The files that are read, by what they are of."""
    own = {info.file for info in contents.own[name].values()}
    found: dict[str, list[Header]] = {}
    for header in headers:
        owner = contents.source.label if header in contents.source.headers else "the artefact"
        found.setdefault(f"task {name}" if header.file in own else owner, []).append(header)
    return found


def _write_side_files(made: Made, folder: Path, title: str) -> None:
    layout, contents = made.layout, made.contents
    if layout.index is not None:
        (folder / layout.index_name).write_bytes(layout.index)
    config = contents.folder.config(made.name)
    if config is not None:
        write_json(folder / "config.json", config)
    copy_side_files(contents.source.path, folder)
    record = _record(made)
    write_json(folder / RECORD, record.content())
    (folder / "README.md").write_bytes(encoded(card(record, title)))


def _record(made: Made) -> MergeRecord:
    method = made.contents.folder.record.method
    inputs = {label: _input(checkpoint) for label, checkpoint in made.inputs.items()}
    return MergeRecord(
        fastmerge=__version__,
        method=METHOD,
        reference=get(method).source if method in names() else "",
        params={"task": made.name, "of": method},
        base=inputs.pop("base", None),
        models=inputs,
        files=made.files,
    )


def _input(checkpoint: Checkpoint) -> CheckpointRecord:
    """Its files by their names in its folder, which of an artefact has others in it."""
    root = checkpoint.path if checkpoint.label == ARTEFACT else None
    files = [
        FileRecord(
            file=printable(header.file.name if root is None else header.file.relative_to(root).as_posix()),
            size=header.size,
            header_sha256=header.digest,
        )
        for header in checkpoint.headers
    ]
    return CheckpointRecord(source=printable(checkpoint.place), files=files)
