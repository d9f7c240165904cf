"""Is a merged folder what its record says, and do its inputs still give it?"""

from __future__ import annotations

import math
import os
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import InputError, MergeError, VerifyError, attempt, nearest
from ..formats import experts
from ..formats.checkpoint import Checkpoint, read_json
from ..formats.emr import EmrArtefact
from ..formats.experts import ExpertsFolder
from ..formats.folder import encoded, holds, to_json
from ..formats.mapping import Inputs
from ..formats.models import open_models
from ..formats.record import RECORD, FileRecord, MergeRecord, read_record
from ..formats.safetensors import Header, read_header
from ..formats.spec import local_path, recorded
from ..formats.tasks import read_content
from ..forms import well_formed
from ..methods import get, names
from ..methods._declaration import Statistics
from ..methods._filter import Filter
from ..recipe.memory import MAX_CHUNK
from ..recipe.merge_plan import MergePlan
from ..recipe.mergekit.recipe import MergekitRecipe
from ..recipe.options import parse_bytes
from ..recipe.plan import plan
from .hashes import hash_files
from .journal import fsync_all
from .remerge import Remerge, compare
from .run_pass import Progress
from .side_files import METHOD, card, file_records, tasks_said
from .task import ARTEFACT, Made, made_of

SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.safetensors")
RTOL = 1e-12  # of sums, which another backend may add up in another order


@dataclass(slots=True)
class Check:
    """What was looked at, and what is wrong with it."""

    what: str
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Verification:
    """The checks of a folder, or of the outputs in it."""

    folder: str
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        return [problem for check in self.checks for problem in check.problems]

    def to_dict(self) -> dict[str, Any]:
        """The verification as JSON."""
        checks = [{"what": check.what, "problems": check.problems} for check in self.checks]
        return {"folder": self.folder, "good": not self.problems, "checks": checks, "notes": self.notes}


@well_formed
def verify(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    models: Mapping[str, str | Path] | None = None,
    samples: int | None = 16,
    hashes: bool = False,
    seed: int = 0,
    memory: str | int = "1GiB",
    progress: Progress | None = None,
) -> Verification:
    """Check a folder made by `merge`, or by `task`, against its record and its inputs.

    Looked at are the sizes and headers of all files, their hashes where they are recorded, and `samples` blocks of
    tensors (None: all), chosen by `seed`, which are merged again and compared to the byte. base, models: where inputs
    are now, if no longer where the record says. hashes: hash all files, and record what was not recorded. memory: bound
    of the buffers, as of the merge. Raises InputError where there is nothing to verify, and VerifyError with everything
    that differs.
    """
    folder = local_path(folder)
    outputs = [] if holds(folder, RECORD) else sorted(path.parent for path in folder.glob(f"*/{RECORD}"))
    found = Verification(str(folder))
    places = {**({} if base is None else {"base": base}), **(models or {})}
    problems: list[str] = []
    attempt(problems, lambda: parse_bytes(memory))
    opened = [attempt(problems, partial(_open, one, places)) for one in outputs or [folder]]
    if problems:
        raise InputError(dict.fromkeys(problems))
    for one, record, made, inputs in (own for own in opened if own is not None):
        if record.fastmerge != __version__:
            found.notes.append(f"{one}: made by fastmerge {record.fastmerge}, verified by {__version__}")
        checks = _file_checks(one, record, inputs)
        known: dict[Path, str] = {}
        if not any(check.problems for check in checks):
            inputs = {label: checkpoint.fetched() for label, checkpoint in inputs.items()}
            known, check = _hash_check(one, record, inputs, hashes)
            checks += [check] if known else []
            if made is not None:
                checks.append(_task_check(one, record, made, samples, seed, progress))
            elif record.method not in names():
                found.notes.append(f"{one}: {record.method} is no method of merge; its blocks were not merged again")
            elif record.backend == "cuda" and _filters(record):
                text = "filtered on a GPU, which the CPU's filter agrees with to 1e-6, but not to the byte"
                found.notes.append(f"{one}: {text}; its blocks were not merged again")
            else:
                checks += _merge_checks(one, record, inputs, samples, seed, memory, progress)
        found.checks += checks
        if hashes and not any(check.problems for check in checks):
            _add_hashes(one, record, inputs, known)
    if found.problems:
        raise VerifyError(found)
    return found


def _open(
    folder: Path, places: Mapping[str, str | Path]
) -> tuple[Path, MergeRecord, Made | None, dict[str, Checkpoint]]:
    """The folder, its record, how it is made again where it is one task's model, and the inputs where they are now."""
    record = read_record(folder)
    if record.method != METHOD:
        return folder, record, None, _opened(folder, record, places)
    problems = _place_problems(folder, record, places)
    made = attempt(problems, lambda: made_of(folder, record, places))
    if problems or made is None:
        raise InputError(problems)
    return folder, record, made, made.inputs


def _filters(record: MergeRecord) -> bool:
    """Whether a merge transforms task vectors, whose bits are those of one backend only."""
    made = [record.params, *(own.parameters for own in record.tensors)]
    return issubclass(get(record.method), Filter) or any(params.get("prefilter") for params in made)


def _place_problems(folder: Path, record: MergeRecord, places: Mapping[str, str | Path]) -> list[str]:
    known = record.inputs
    return [
        f"{folder}: no input is called {label!r}{nearest(label, known)}; there are {', '.join(known)}"
        for label in places
        if label not in known
    ]


def _opened(folder: Path, record: MergeRecord, places: Mapping[str, str | Path]) -> dict[str, Checkpoint]:
    """The inputs, where they are now."""
    known, problems = record.inputs, _place_problems(folder, record, places)
    trouble: list[str] = []
    sources = dict(places)
    for label, given in known.items():
        source = places.get(label) or attempt(trouble, partial(recorded, given.source, label))
        sources |= {} if source is None else {label: source}
    base, models = open_models(
        sources.get("base"),
        [(label, sources[label]) for label in record.models if label in sources],
        trouble,
        fetch=False,
    )
    for problem in trouble:
        label = problem.partition(":")[0]
        option = "--base PATH" if label == "base" else f"--model {label}=PATH"
        problems.append(f"{problem}; say where it is now by {option}")
    if problems:
        raise InputError(problems)
    return {checkpoint.label: checkpoint for checkpoint in (base, *models) if checkpoint is not None}


def _file_checks(folder: Path, record: MergeRecord, inputs: Mapping[str, Checkpoint]) -> list[Check]:
    """Sizes and headers of the inputs and of the folder's own files."""
    checks = [Check("inputs"), Check("files")]
    headers: list[Header] = []
    for label, given in record.inputs.items():
        before = [(file.size, file.header_sha256) for file in given.files]
        if [(header.size, header.digest) for header in inputs[label].headers] != before:
            text = f"{label}: {inputs[label].path} is not what was merged: its files have other sizes or headers"
            checks[0].problems.append(text)
    for file in record.files:
        path = folder / file.file
        try:
            header = read_header(path)
        except InputError as error:
            checks[1].problems += error.problems
            continue
        if (header.size, header.digest) != (file.size, file.header_sha256):
            checks[1].problems.append(f"{path}: has another size or header than what was merged")
        headers.append(header)
    if not checks[1].problems:
        checks[1].problems += _index_problems(folder, record, headers)
    return checks


def _index_problems(folder: Path, record: MergeRecord, headers: list[Header]) -> list[str]:
    """Which indices of shards are not what the shards give."""
    expected: dict[str, dict[str, str]] = {}
    for file, header in zip(record.files, headers, strict=True):
        if shard := SHARD.fullmatch(file.file):
            expected.setdefault(f"{shard[1]}.safetensors.index.json", {}).update(
                dict.fromkeys(header.tensors, header.file.name)
            )
    problems: list[str] = []
    for name, weight_map in expected.items():
        content = attempt(problems, partial(read_json, folder / name))
        if content is not None and content.get("weight_map") != weight_map:
            problems.append(f"{folder / name}: is not the index of the shards beside it")
    return problems


def _hash_check(
    folder: Path, record: MergeRecord, inputs: Mapping[str, Checkpoint], every: bool
) -> tuple[dict[Path, str], Check]:
    """Hashes of the files that have one recorded, or of `every` file."""
    files = [(file, path) for file, path in _all_files(folder, record, inputs) if every or file.sha256]
    found = hash_files(path for _, path in files)
    changed = [path for file, path in files if file.sha256 not in (None, found[path])]
    return found, Check("hashes", [f"{path}: has changed: its hash is not the recorded one" for path in changed])


def _all_files(
    folder: Path, record: MergeRecord, inputs: Mapping[str, Checkpoint]
) -> Iterator[tuple[FileRecord, Path]]:
    for label, given in record.inputs.items():
        yield from zip(given.files, (header.file for header in inputs[label].headers), strict=True)
    yield from ((file, folder / file.file) for file in record.files)


def _merge_checks(
    folder: Path,
    record: MergeRecord,
    inputs: Mapping[str, Checkpoint],
    samples: int | None,
    seed: int,
    memory: str | int,
    progress: Progress | None,
) -> list[Check]:
    """Blocks merged again, and the method's numbers."""
    planned = _planned(record, {label: c.path for label, c in inputs.items()}, memory)
    again = Remerge(planned, folder, samples, seed)
    trouble = []
    try:
        again.gather(progress)
        laid_out = [(file.file, file.header_sha256) for file in file_records(again.plan.outputs[0], folder, {})]
        if laid_out != [(file.file, file.header_sha256) for file in record.files]:
            text = f"{folder}: its files are laid out otherwise than these inputs and parameters give"
            return [Check("blocks", [text])]
        again.compare(progress)
    except MergeError as error:
        trouble = [str(error)]
    checks = [Check(f"{again.blocks} blocks", again.problems + trouble)]
    if checks[0].problems:
        return checks
    return [*checks, *_task_checks(folder, again.plan), *_number_checks(folder, record, again)]


def _task_check(
    folder: Path, record: MergeRecord, made: Made, samples: int | None, seed: int, progress: Progress | None
) -> Check:
    """Blocks of one task's model, made again."""
    if [(file.file, file.header_sha256) for file in made.files] != [(f.file, f.header_sha256) for f in record.files]:
        return Check("blocks", [f"{folder}: its files are laid out otherwise than its {ARTEFACT} gives"])
    problems: list[str] = []
    inputs, choice = Inputs(made.headers), random.Random(int(seed))
    works = made.works(inputs)
    try:
        blocks = compare(works, [made.layout], folder, inputs, MAX_CHUNK, samples, choice, problems, progress)
    except MergeError as error:
        return Check("blocks", [*problems, str(error)])
    return Check(f"{blocks} blocks", problems)


def _planned(record: MergeRecord, paths: dict[str, Path], memory: str | int) -> MergePlan:
    """The merge of a record, of inputs that are in these places."""
    if record.mergekit:
        return MergekitRecipe(record.mergekit).plan(dtype=record.dtype, memory=memory, places=paths)
    return plan(
        record.method,
        paths.pop("base", None),
        paths,
        params=record.params,
        tensors=[(own.match, own.parameters) for own in record.tensors],
        task_specific=record.task_specific,
        rename=record.rename,
        vocab=record.vocab or "error",
        dtype=record.dtype,
        memory=memory,
    )


def _number_checks(folder: Path, record: MergeRecord, again: Remerge) -> Iterator[Check]:
    """The sums of an EMR artefact, as far as they were summed again, and the numbers per model that statistics give."""
    plan, output, statistics = again.plan, again.plan.outputs[0], again.statistics
    if output.experts:
        stored = [expert.scale for expert in ExpertsFolder(folder).record.experts.values()]
        wrong = [] if stored == record.results.get("scales") else [f"{folder}: scales of {experts.RECORD} have changed"]
        yield Check("scales of experts", wrong)
    if "unified" in output.layouts:
        artefact = EmrArtefact(folder)
        sums = {
            name: torch.tensor([own.magnitude, own.kept], dtype=torch.float64)
            for name, own in artefact.record.tensors.items()
        }
        wrong = [
            f"{folder}: the sums of tensor {name!r} are not what its inputs give"
            for name, own in statistics[-1].sums.items()
            if not torch.allclose(_numbers(own), sums[name], rtol=RTOL, atol=0, equal_nan=True)
        ]
        yield Check(f"sums of {len(statistics[-1].sums)} tensors", wrong)
        sizes = {name: info.numel for name, info in artefact.unified.items()}
        statistics = [*statistics[:-1], Statistics(len(plan.models), sizes, sums)]
        found = {"rescalers": artefact.record.rescalers}
    elif again.whole:
        found = record.results
    else:
        return
    expected = output.method.results(statistics)
    wrong = [
        f"{folder}: {name} are {own}, its statistics give {expected.get(name)}"
        for name, own in (*found.items(), *record.results.items())
        if not _close(own, expected.get(name, []))
    ]
    if expected:
        yield Check(", ".join(expected), list(dict.fromkeys(wrong)))


def _task_checks(folder: Path, plan: MergePlan) -> Iterator[Check]:
    """What a record of tasks says beside numbers: which is whose, and what becomes of base's tensors."""
    for name, said in tasks_said(plan, plan.outputs[0]).items():
        stored = read_content(folder / name)
        if "experts" in stored:
            stored["experts"] = {task: own.get("file") for task, own in stored["experts"].items()}
        wrong = [key for key, value in said.items() if stored.get(key) != value]
        yield Check(name, [f"{folder / name}: its {key} are not those of the merge" for key in wrong])


def _numbers(sums: torch.Tensor) -> torch.Tensor:
    """Sums as a record has them: it tells no infinity from NaN."""
    return torch.where(sums.isfinite(), sums, math.nan)


def _close(one: list[float], other: list[float]) -> bool:
    """Equal, but for what sums of another backend may change in numbers rounded to float32."""
    pairs = zip(one, other, strict=True)
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=1e-6) if math.isfinite(a) or math.isfinite(b) else True for a, b in pairs
    )


def _add_hashes(
    folder: Path, record: MergeRecord, inputs: Mapping[str, Checkpoint], hashes: Mapping[Path, str]
) -> None:
    """Write the record with hashes, and the model card, if it still is the one that was made of the record."""
    readme = folder / "README.md"
    card_is_ours = readme.is_file() and readme.read_bytes() == encoded(card(record, folder.name))
    for file, path in _all_files(folder, record, inputs):
        file.sha256 = hashes[path]
    try:
        _replace(folder / RECORD, to_json(record.content()))
        if card_is_ours:
            _replace(readme, card(record, folder.name))
    except OSError as error:
        raise MergeError(
            f"{folder}: the hashes cannot be recorded: {error.strerror}; mend that, or leave --hash out"
        ) from None


def _replace(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.partial")
    scratch.write_bytes(encoded(text))
    fsync_all([scratch])
    os.replace(scratch, path)
