"""Merging checkpoints on disk: a plan's passes, streamed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__, dispatch
from ..errors import InputError, MergeError
from ..formats.checkpoint import Checkpoint
from ..formats.emr import RECORD, BaseRecord, EmrRecord, TensorSums
from ..formats.folder import copy_side_files, model_card, set_dtype, write_json
from ..formats.layout import Place
from ..formats.safetensors import TensorInfo
from ..methods._declaration import Block, Method, Pass, Statistics, Written
from ..recipe.plan import DTYPE_NAMES, SLOTS, MergePlan, inputs, plan
from ..recipe.preflight import Rename, TensorPlan
from .culprit import check_finite
from .mapping import Inputs
from .publish import Publication
from .report import Report
from .stream import Source, Target, Work, slot_bytes, stream
from .writer import Writer

Progress = Callable[[int], None]


def merge(
    method: str | Method,
    base: str | Path | None = None,
    models: Mapping[str, str | Path] | Sequence[tuple[str, str | Path]] = (),
    out: str | Path | None = None,
    params: Mapping[str, Any] | None = None,
    *,
    task_specific: Sequence[str] = (),
    rename: Mapping[str, Rename] | None = None,
    dtype: str | None = None,
    memory: str | int = "1GiB",
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Merge checkpoints on disk into the folder `out`. Arguments are those of `plan`.

    `progress` is called with the number of bytes read since its last call. Raises InputError for anything wrong with
    the input before a weight is read, MergeError for what only shows while merging; then no output is left.
    """
    if out is None:
        raise InputError("merge: say where the result goes (out=)")
    prepared = plan(
        method,
        base,
        models,
        out,
        params,
        task_specific=task_specific,
        rename=rename,
        dtype=dtype,
        memory=memory,
        device=device,
        overwrite=overwrite,
    )
    return execute(prepared, progress)


def execute(plan: MergePlan, progress: Progress | None = None) -> Report:
    """Carry out a plan that has an output folder."""
    assert plan.out is not None
    begin = time.perf_counter()
    checkpoints = [c for c in (plan.base, *plan.models) if c is not None]
    files = Inputs({header.file: header.size for c in checkpoints for header in c.headers})
    statistics: list[Statistics] = []
    with Publication(plan.out, plan.overwrite) as folder:
        for number, one in enumerate(plan.passes):
            last = number == len(plan.passes) - 1
            gathered = Statistics(len(plan.models))
            works = _works(plan, one, statistics, gathered, files, last)
            written = [plan.layouts[kind] for kind in one.writes] + (list(plan.heads.values()) if last else [])
            outputs = [file for layout in written for file in layout.files]
            with Writer(folder, outputs, SLOTS, slot_bytes(works, plan.chunk)) as writer:
                stream(works, files, writer, plan.chunk, progress)
            statistics.append(gathered)
        results = plan.method.results(statistics)
        _write_side_files(plan, folder, statistics[-1], results)
    return Report(
        out=str(plan.out),
        method=plan.method.name,
        models=plan.names,
        tensors=len(plan.alignment.tensors),
        parameters=plan.parameters,
        bytes_read=plan.bytes_read,
        bytes_written=plan.bytes_written,
        seconds=time.perf_counter() - begin,
        backend=dispatch.choose("combine", "cpu").__module__.split(".")[2],
        results=results,
        notes=list(plan.notes),
    )


def _works(
    plan: MergePlan, one: Pass, earlier: Sequence[Statistics], gathered: Statistics, files: Inputs, last: bool
) -> list[Work]:
    """The pass's work on every tensor, in the order of the lead checkpoint's files."""
    works: list[tuple[int, Work]] = []
    position = {name: i for i, name in enumerate(plan.lead.tensors)}
    for tensor in plan.alignment.tensors:
        make = _copying if tensor.copy else partial(_merging, earlier=earlier, gathered=gathered, files=files)
        if not tensor.copy or last:
            works.append((position[tensor.name], make(plan, one, tensor)))
    if "merged" in one.writes:
        for info in plan.alignment.base_specific:
            place = plan.layouts["merged"].places[info.name]
            works.append((position[info.name], _copy_of(info, place)))
    if last:
        for label, layout in plan.heads.items():
            own = plan.alignment.task_specific[label]
            works += [(len(position), _copy_of(info, layout.places[info.name])) for info in own]
    return [work for _, work in sorted(works, key=lambda entry: entry[0])]


def _merging(
    plan: MergePlan,
    one: Pass,
    tensor: TensorPlan,
    *,
    earlier: Sequence[Statistics],
    gathered: Statistics,
    files: Inputs,
) -> Work:
    sums = torch.zeros(one.rows, len(plan.models), dtype=torch.float64)
    nonfinite = 0
    uses_base = plan.method.uses_base

    def run(sources: list[Tensor], targets: list[Tensor]) -> None:
        nonlocal nonfinite
        block = Block(sources[uses_base:], sources[0] if uses_base else None, sums=sums)
        for kind, memory in zip(one.writes, targets, strict=True):
            setattr(block, kind, memory)
        one.run(block, earlier)
        nonfinite += block.nonfinite

    def done() -> None:
        if plan.method.nonfinite == "error" and (nonfinite or not sums.isfinite().all()):
            check_finite(tensor, plan.names, files, plan.chunk)
        gathered.sizes[tensor.name] = tensor.numel
        gathered.sums[tensor.name] = sums.tolist()

    stored = tuple(Source(info) for info in inputs(tensor, plan.method))
    return Work(tensor.numel, stored, _targets(plan, one, tensor), run, done)


def _targets(plan: MergePlan, one: Pass, tensor: TensorPlan) -> tuple[Target, ...]:
    def target(kind: Written) -> Target:
        places = plan.layouts[kind].places
        if kind == "masks":
            return Target((places[tensor.name],), "U8", len(plan.models))
        names = (tensor.name, *tensor.aliases) if kind == "merged" else (tensor.name,)
        stored = plan.stored_dtype(tensor) if kind == "unified" else plan.dtype or tensor.dtype
        return Target(tuple(places[name] for name in names), stored)

    return tuple(target(kind) for kind in one.writes)


def _copying(plan: MergePlan, one: Pass, tensor: TensorPlan) -> Work:
    """An integer tensor: compared, and copied where a merged model is written."""
    labels = (["base"] if tensor.base else []) + plan.names
    places = (
        tuple(plan.layouts["merged"].places[name] for name in (tensor.name, *tensor.aliases))
        if "merged" in one.writes
        else ()
    )

    def run(sources: list[Tensor], targets: list[Tensor]) -> None:
        for label, other in zip(labels[1:], sources[1:], strict=True):
            if not torch.equal(sources[0], other):
                raise MergeError(
                    f"tensor {tensor.name!r} ({tensor.dtype}) differs between {labels[0]} and {label}; "
                    "integer tensors are not merged and must be equal"
                )
        for target in targets:
            target.copy_(sources[0])

    stored = tuple(Source(info) for info in inputs(tensor, plan.method))
    return Work(tensor.numel, stored, (Target(places, tensor.dtype),) if places else (), run)


def _copy_of(info: TensorInfo, place: Place) -> Work:
    def run(sources: list[Tensor], targets: list[Tensor]) -> None:
        targets[0].copy_(sources[0])

    return Work(info.numel, (Source(info),), (Target((place,), info.dtype),), run)


def _write_side_files(
    plan: MergePlan, folder: Path, statistics: Statistics, results: Mapping[str, list[float]]
) -> None:
    for layout in plan.layouts.values():
        if layout.index is not None:
            (folder / layout.index_name).write_bytes(layout.index)
    if plan.lead.config and plan.dtype:
        name = next(name for name, code in DTYPE_NAMES.items() if code == plan.dtype)
        write_json(folder / "config.json", set_dtype(plan.lead.config, name))
    copy_side_files(plan.lead.path, folder)
    if "unified" in plan.layouts:
        _write_record(plan, folder, statistics, results)
        for model in plan.models:
            if model.config and model.label in plan.heads:
                write_json(folder / "tasks" / model.label / "config.json", model.config)
    recipe = {
        "fastmerge": __version__,
        "method": plan.method.name,
        "params": plan.method.model_dump(mode="json"),
        "base": None if plan.base is None else _source(plan, plan.base),
        "models": {model.label: _source(plan, model) for model in plan.models},
    }
    lines = [f"Merged from {len(plan.models)} models with `{plan.method.name}` ({plan.method.source})."]
    if "unified" in plan.layouts:
        lines.append("\nAn EMR artefact: `fastmerge task THIS_FOLDER NAME --out FOLDER` gives one task's model.")
    (folder / "README.md").write_text(model_card(plan.out.name if plan.out else "", lines, recipe), encoding="utf-8")


def _source(plan: MergePlan, checkpoint: Checkpoint) -> dict[str, Any]:
    return {"source": plan.sources[checkpoint.label], "files": checkpoint.identity()}


def _write_record(plan: MergePlan, folder: Path, statistics: Statistics, results: Mapping[str, list[float]]) -> None:
    assert plan.base is not None
    record = EmrRecord(
        fastmerge=__version__,
        method=plan.method.name,
        params=plan.method.model_dump(mode="json"),
        tasks=plan.names,
        rescalers=results["rescalers"],
        base=BaseRecord(**_source(plan, plan.base)),
        unified=[file.name for file in plan.layouts["unified"].files],
        masks=[file.name for file in plan.layouts["masks"].files],
        tensors={n: TensorSums(magnitude=rows[0], kept=rows[1]) for n, rows in statistics.sums.items()},
        aliases={t.name: list(t.aliases) for t in plan.alignment.tensors if t.aliases},
        copied=[t.name for t in plan.alignment.tensors if t.copy],
        replaced=[info.name for info in plan.alignment.base_specific],
    )
    write_json(folder / RECORD, record.model_dump(mode="json"))
