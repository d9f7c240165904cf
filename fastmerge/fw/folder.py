"""The merged model as a folder, made of the candidates by their coefficients; and the same again, from a record."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..engine.identity import backend, digest, layout_files
from ..engine.publish import Publication
from ..engine.reading import whole
from ..engine.report import Report
from ..engine.run_pass import run_pass
from ..engine.state_dicts import CODES
from ..engine.stream import Target, Work
from ..errors import InputError
from ..formats import record as merges
from ..formats.checkpoint import same_files
from ..formats.folder import copy_side_files, model_card, set_dtype, write_json
from ..formats.layout import Layout, Place, plan_layout
from ..formats.mapping import TORCH_DTYPES
from ..recipe.destination import output_problems
from ..recipe.plan import DTYPE_NAMES
from .candidates import INITIAL, Candidates, Member, Pool, check_combined, named
from .matching import Slot
from .record import RECORD, Record

METHOD = "frank_wolfe"
REFERENCE = "FW-Merging, Chen et al. 2025, arXiv 2503.12649"


def write_folder(
    record: Record, candidates: Candidates, own: Mapping[str, Tensor], out: Path, *, overwrite: bool = False
) -> Report:
    """Write merged tensors and, as they are, `own` ones to the folder `out`, whole or not at all."""
    begin = time.perf_counter()
    if record.coefficients is None:
        raise InputError("a model made by merge_fn has no coefficients to write it by; save the model itself")
    names = {slot: candidates.stored_name(slot) for slot in candidates.slots}
    kinds = [(names[slot], one.dtype, one.shape) for slot, one in candidates.slots.items()]
    kinds += [(name, CODES[tensor.dtype], tuple(tensor.shape)) for name, tensor in own.items()]
    layout = plan_layout(kinds)
    inputs = [checkpoint.path for checkpoint in candidates.checkpoints.values()]
    problems = output_problems(out, layout.total_bytes, inputs, overwrite=overwrite)
    if problems:
        raise InputError(problems)
    weights, bad = _weights(record, candidates), list[str]()
    works = [
        candidates.combining(slot, weights[slot], None, bad, (Target((layout.places[names[slot]],), one.dtype),))
        for slot, one in candidates.slots.items()
    ]
    works += [_copying(tensor, layout.places[name], candidates.chunk) for name, tensor in own.items()]
    fingerprint = {METHOD: digest(record.model_dump(mode="json"))} | layout_files([layout])
    with Publication(out, fingerprint, overwrite=overwrite) as publication:
        moved = run_pass(works, layout.files, publication, candidates.files, candidates.chunk)
        candidates.files.check_unchanged()
        check_combined(bad)
        publication.clear_beside(layout.files)
        _write_side_files(record, candidates, layout, publication.folder, out.name)
    return Report(
        out=str(out),
        method=METHOD,
        models=record.candidates[1:],
        tensors=len(works),
        parameters=sum(work.numel for work in works),
        bytes_read=moved.read,
        bytes_written=moved.written,
        seconds=time.perf_counter() - begin,
        backend=backend(),
        notes=record.notes,
    )


def rebuild(
    record: Record | str | Path,
    pool: Pool | None = None,
    init: Member | None = None,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Tensor]:
    """The tensors that a run merged, to the bit, from its record, without data; with `out` written as a folder too.

    record: what `Result.save` wrote, or a folder of `Result.write`. pool, init: as they were given to `frank_wolfe`, by
    default from where they were read; candidates whose coefficients are all 0 are not needed. Raises InputError where
    one is missing or is another.
    """
    record = record if isinstance(record, Record) else Record.read(record)
    if record.coefficients is None:
        raise InputError("this model was made by merge_fn, and cannot be made again by coefficients")
    slots = {n: Slot(tuple(t.names), tuple(t.shape), t.dtype) for n, t in record.tensors.items()}
    candidates = Candidates(slots)
    given = ({} if init is None else {INITIAL: init}) | ({} if pool is None else named(pool))
    used = [k for k in range(len(record.candidates)) if any(row[k] for row in record.coefficients)]
    problems = []
    for k in used:
        try:
            _take(candidates, record, record.candidates[k], given)
        except InputError as error:  # noqa: PERF203 - the problems of all are wanted
            problems += error.problems
    if problems:
        raise InputError(problems)
    weights, bad = _weights(record, candidates), list[str]()
    merged = {name: torch.empty(slot.shape, dtype=TORCH_DTYPES[slot.dtype]) for name, slot in slots.items()}
    candidates.sweep([candidates.combining(name, weights[name], t.view(-1), bad) for name, t in merged.items()])
    check_combined(bad)
    if out is not None:
        write_folder(record, candidates, _not_merged(candidates, slots), Path(out), overwrite=overwrite)
    return {name: merged[first] for first, slot in slots.items() for name in slot.names}


def _take(candidates: Candidates, record: Record, name: str, given: Mapping[str, Member]) -> None:
    """Add a candidate, which must be the one that was merged."""
    identity = record.identities.get(name)
    member = given.get(name, identity and identity["source"])
    if member is None:
        what = "init" if name == INITIAL else "pool"
        raise InputError(f"{name}: was in memory, and is needed again; pass it ({what}=)")
    candidates.add(name, member, record.settings.get("task_specific", ()))
    opened = candidates.checkpoints.get(name)
    if identity is not None and opened is not None and not same_files(identity["files"], opened):
        raise InputError(f"{name}: {opened.path} is not the checkpoint that was merged; give that one")


def _weights(record: Record, candidates: Candidates) -> dict[str, list[float]]:
    """By tensor, the coefficients of these candidates."""
    places = [record.candidates.index(name) for name in candidates.names]
    rows = [[row[k] for k in places] for row in record.coefficients or []]
    return {name: rows[tensor.row] for name, tensor in record.tensors.items()}


def _not_merged(candidates: Candidates, slots: Mapping[str, Slot]) -> dict[str, Tensor]:
    """What else the first candidate on disk has."""
    merged = {name for slot in slots.values() for name in slot.names}
    lead, files = candidates.lead, candidates.files
    tensors = {} if lead is None else lead.tensors
    return {name: whole(files, info) for name, info in tensors.items() if name not in merged}


def _copying(tensor: Tensor, place: Place, chunk: int) -> Work:
    flat = tensor.reshape(-1)

    def copy(start: int, _: list[Tensor], made: list[Tensor]) -> None:
        part = flat[start : start + chunk].cpu().contiguous()
        made[0].view(torch.uint8).copy_(part.view(torch.uint8))

    return Work(flat.numel(), (), (Target((place,), CODES[tensor.dtype]),), copy)


def _write_side_files(record: Record, candidates: Candidates, layout: Layout, folder: Path, title: str) -> None:
    if layout.index is not None:
        (folder / layout.index_name).write_bytes(layout.index)
    lead = candidates.lead
    dtypes = {tensor.dtype for tensor in record.tensors.values()}
    if lead is not None:
        if lead.config and len(dtypes) == 1:
            name = next(name for name, code in DTYPE_NAMES.items() if {code} == dtypes)
            write_json(folder / "config.json", set_dtype(lead.config, name))
        copy_side_files(lead.path, folder)
    record.save(folder / RECORD)
    merged = _merge_record(record, layout)
    recipe = record.settings if merged is None else merged.content()
    if merged is not None:
        write_json(folder / merges.RECORD, recipe)
    lines = [f"Merged from {len(record.candidates) - 1} models by Frank-Wolfe optimisation ({REFERENCE})."]
    lines += [f"\nSteps, choices and coefficients: `{RECORD}`."]
    (folder / "README.md").write_text(model_card(title, lines, recipe), encoding="utf-8")


def _merge_record(record: Record, layout: Layout) -> merges.MergeRecord | None:
    """The common record of a merge, where all of the pool was on disk."""
    inputs = {name: _input(identity) for name, identity in record.identities.items() if identity is not None}
    if not {*record.candidates[1:]} <= {*inputs}:
        return None
    rows = record.coefficients or []
    return merges.MergeRecord(
        fastmerge=__version__,
        method=METHOD,
        reference=REFERENCE,
        params={name: value for name, value in record.settings.items() if name != "task_specific"},
        task_specific=record.settings.get("task_specific", []),
        base=inputs.get(INITIAL),
        models={name: inputs[name] for name in record.candidates[1:]},
        results={"coefficients": rows[0][1:]} if len(rows) == 1 else {},
        files=[
            merges.FileRecord(file=file.name, size=file.size, header_sha256=hashlib.sha256(file.header[8:]).hexdigest())
            for file in layout.files
        ],
    )


def _input(identity: Mapping[str, Any]) -> merges.CheckpointRecord:
    files = [merges.FileRecord.model_validate(file) for file in identity["files"]]
    return merges.CheckpointRecord(source=identity["source"], files=files)
