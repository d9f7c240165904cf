"""A run's merged model as a folder like any other, written whole or not at all, with the run's record in it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import __version__
from ..engine.identity import backend, digest, layout_files
from ..engine.publish import Publication
from ..engine.report import Report
from ..engine.run_pass import run_pass
from ..engine.state_dicts import CODES
from ..engine.stream import Target, Work
from ..errors import InputError
from ..formats import record as merges
from ..formats.folder import copy_side_files, encoded, model_card, set_dtype, write_json
from ..formats.layout import Layout, plan_layout
from ..formats.tasks import BaseRecord
from ..recipe.destination import output_folder, output_problems
from ..recipe.options import dtype_name
from .candidates import Candidates, check_combined
from .record import RunRecord

Making = Callable[[str, Target, list[str]], Work]  # of a slot, into a target; the names of those not finite


def publish(
    record: RunRecord, candidates: Candidates, make: Making, own: Mapping[str, Tensor], out: Path, *, overwrite: bool
) -> Report:
    """Write what `make` makes of every slot and, as they are, `own` tensors to the folder `out`."""
    begin, out = time.perf_counter(), output_folder(out)
    names = {slot: candidates.stored_name(slot) for slot in candidates.slots}
    kinds = [(names[slot], one.dtype, one.shape) for slot, one in candidates.slots.items()]
    kinds += [(name, CODES[tensor.dtype], tuple(tensor.shape)) for name, tensor in own.items()]
    layout = plan_layout(kinds)
    inputs = [path for checkpoint in candidates.checkpoints.values() for path in checkpoint.places]
    problems = output_problems(out, layout.total_bytes, inputs, overwrite=overwrite)
    if problems:
        raise InputError(problems)
    bad = list[str]()
    works = [
        make(slot, Target((layout.places[names[slot]],), one.dtype), bad) for slot, one in candidates.slots.items()
    ]
    works += [
        copying(tensor, Target((layout.places[name],), CODES[tensor.dtype]), candidates.chunk)
        for name, tensor in own.items()
    ]
    fingerprint = {record.method: digest(record.model_dump(mode="json"))} | layout_files([layout])
    with Publication(out, fingerprint, overwrite=overwrite) as publication:
        moved = run_pass(works, layout.files, publication, candidates.files, candidates.chunk)
        candidates.files.check_unchanged()
        check_combined(bad)
        publication.clear_beside(layout.files)
        _write_side_files(record, candidates, layout, publication.folder, out.name)
    return Report(
        out=str(out),
        method=record.method,
        models=record.pool,
        tensors=len(works),
        parameters=sum(work.numel for work in works),
        bytes_read=moved.read,
        bytes_written=moved.written,
        seconds=time.perf_counter() - begin,
        backend=backend(),
        notes=record.notes,
    )


def copying(tensor: Tensor, target: Target, chunk: int) -> Work:
    """Write a tensor as it is."""
    flat = tensor.reshape(-1)

    def copy(start: int, _: list[Tensor], made: list[Tensor]) -> None:
        part = flat[start : start + chunk].cpu().contiguous()
        made[0].view(torch.uint8).copy_(part.view(torch.uint8))

    return Work(flat.numel(), (), (target,), copy)


def not_merged(model: nn.Module, candidates: Candidates) -> dict[str, Tensor]:
    """The model's tensors that are no slot's."""
    merged = {name for slot in candidates.slots.values() for name in slot.names}
    return {
        name: tensor.detach()
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor) and name not in merged
    }


def _write_side_files(record: RunRecord, candidates: Candidates, layout: Layout, folder: Path, title: str) -> None:
    if layout.index is not None:
        (folder / layout.index_name).write_bytes(layout.index)
    lead = candidates.lead
    dtypes = {slot.dtype for slot in candidates.slots.values()}
    if lead is not None:
        if lead.config and len(dtypes) == 1:
            write_json(folder / "config.json", set_dtype(lead.config, dtype_name(dtypes.pop())))
        copy_side_files(lead.path, folder)
    record.save(folder / record.file)
    merged = _merge_record(record, layout)
    recipe = record.settings if merged is None else merged.content()
    if merged is not None:
        write_json(folder / merges.RECORD, recipe)
    lines = [f"Merged from {len(record.pool)} models by {record.title} ({record.reference})."]
    lines += [f"\nSteps, choices and coefficients: `{record.file}`."]
    (folder / "README.md").write_bytes(encoded(model_card(title, lines, recipe)))


def _merge_record(record: RunRecord, layout: Layout) -> merges.MergeRecord | None:
    """The common record of a merge, where all of the pool was on disk."""
    inputs = {name: _input(identity) for name, identity in record.identities.items() if identity is not None}
    if not {*record.pool} <= {*inputs}:
        return None
    initial = next((name for name in record.candidates if name not in record.pool), None)
    rows = record.coefficients or []
    return merges.MergeRecord(
        fastmerge=__version__,
        method=record.method,
        reference=record.reference,
        params={name: value for name, value in record.settings.items() if name != "task_specific"},
        task_specific=record.settings.get("task_specific", []),
        base=None if initial is None else inputs.get(initial),
        models={name: inputs[name] for name in record.pool},
        results={"coefficients": rows[0][-len(record.pool) :]} if len(rows) == 1 else {},
        files=[
            merges.FileRecord(file=file.name, size=file.size, header_sha256=hashlib.sha256(file.header[8:]).hexdigest())
            for file in layout.files
        ],
    )


def _input(identity: BaseRecord) -> merges.CheckpointRecord:
    files = [merges.FileRecord.model_validate(file) for file in identity.files]
    return merges.CheckpointRecord(source=identity.source, files=files)
