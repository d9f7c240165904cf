"""Merging checkpoints on disk: a plan's passes, streamed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import gpus
from ..errors import InputError
from ..formats.mapping import Inputs
from ..forms import well_formed
from ..methods._declaration import Method, Statistics
from ..recipe.merge_plan import MergePlan
from ..recipe.parameters import Override
from ..recipe.plan import plan
from ..recipe.preflight import Rename
from ..recipe.vocabulary import Vocab
from .devices import open_devices
from .hashes import hash_files
from .identity import backend, fingerprint, inputs_key
from .pipeline import Pipeline
from .publish import Publication
from .report import Report
from .run_pass import Moved, Progress, expect, run_pass
from .side_files import write_side_files
from .statistics import Kept
from .statistics_file import load, save, statistics_file
from .works import Reading

if TYPE_CHECKING:
    import torch


@well_formed
def merge(
    method: str | Method,
    base: str | Path | None = None,
    models: Mapping[str, str | Path] | Iterable[tuple[str, str | Path]] = (),
    out: str | Path | None = None,
    params: Mapping[str, Any] | None = None,
    *,
    tensors: Sequence[Override] = (),
    outputs: Mapping[str, Mapping[str, Any]] | None = None,
    task_specific: Sequence[str] = (),
    rename: Mapping[str, Rename] | None = None,
    vocab: Vocab = "error",
    dtype: str | torch.dtype | None = None,
    memory: str | int = "1GiB",
    device: str | torch.device = "auto",
    overwrite: bool = False,
    resume: bool = False,
    hashes: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Merge checkpoints on disk into the folder `out`.

    method: a method's name with its `params`, or a declared Method. base and models: folders, .safetensors files or Hub
    names; `models` maps names to them, in the order of merging. tensors: patterns of tensor names (one or several), and
    the parameters they change; later ones win. outputs: several results of one reading, each a folder of its own in
    `out` with the parameters that it changes. What tensors and outputs say by model's name changes those models alone.
    Where a number may differ between tensors, {"layers": [0.1, 0.9]} goes from the first layer to the last.
    task_specific: patterns of tensors kept per task; rename: per model, (old, new) prefixes. vocab: where embeddings
    have different numbers of rows, "base" keeps base's, "pad" all. dtype: of the result, a name or torch's own, base's
    by default. memory: bound of the engine's own buffers. device: "auto" (a GPU that can be used, else the CPU), "cpu",
    "cuda", "cuda:1", or several GPUs with commas between. overwrite: replace a folder at `out` that fastmerge wrote.
    resume: go on with the same merge where it was stopped. hashes: record those of all input and output files, for
    `verify`. progress: called with the number of bytes read since its last call; before, if it has a method `expect`,
    that with all to come.

    The report tells the bytes that were moved, in which time, and the method's numbers per model. Raises InputError for
    anything wrong with the input before a weight is read, MergeError for what only shows while merging; then no output
    is left. What was done when a merge was interrupted, or ended with a ResumableError, is kept for another call with
    `resume`.
    """
    if out is None:
        raise InputError("merge: say where the result goes (out=)")
    prepared = plan(
        method,
        base,
        models,
        out,
        params,
        tensors=tensors,
        outputs=outputs,
        task_specific=task_specific,
        rename=rename,
        vocab=vocab,
        dtype=dtype,
        memory=memory,
        device=device,
        overwrite=overwrite,
        resume=resume,
        hashes=hashes,
    )
    return execute(prepared, progress)


def execute(plan: MergePlan, progress: Progress | None = None, files: Inputs | None = None) -> Report:
    """Carry out a plan that has an output folder. `files`: the plan's, where they are mapped already."""
    out = plan.out
    assert out is not None
    plan = plan.fetched()
    begin = time.perf_counter()
    device, device_notes = gpus.settle(plan.device)
    plan = replace(plan, device=device, notes=(*plan.notes, *device_notes))
    devices = open_devices(device)
    pipeline = Pipeline(devices, plan.memory) if devices else None
    files = files or Inputs(plan.headers, resumable=True)
    key = inputs_key(plan)
    kept, notes = load(statistics_file(out, key), key, plan.memory)
    expect(progress, plan.bytes_read)
    with Publication(out, fingerprint(plan), overwrite=plan.overwrite, resume=plan.resume) as publication:
        plan, statistics, moved = _run_passes(plan, files, kept, pipeline, publication, progress)
        files.check_unchanged()
        if kept.changed:
            try:
                save(kept, statistics_file(out, key), key, plan.headers, publication.partial / "statistics")
            except OSError as error:  # the result does not depend on it
                notes.append(f"statistics are not kept: {error.strerror}")
        results = [o.method.results(found) for o, found in zip(plan.outputs, statistics, strict=True)]
        if not publication.published:
            publication.clear_beside(plan.files)
            hashes = _hashes(plan, publication.folder) if plan.hashes else {}
            for output, found, numbers in zip(plan.outputs, statistics, results, strict=True):
                write_side_files(plan, output, publication.folder, found[-1], numbers, hashes)
    return Report(
        out=str(out),
        method=plan.method.name,
        models=plan.names,
        tensors=len(plan.alignment.tensors),
        parameters=plan.parameters,
        bytes_read=moved.read,
        bytes_written=moved.written,
        seconds=time.perf_counter() - begin,
        backend=backend(device),
        outputs=[output.name for output in plan.outputs if output.name],
        results={o.folder + key: r[key] for o, r in zip(plan.outputs, results, strict=True) for key in r},
        notes=[*plan.notes, *publication.notes, *notes],
    )


def _run_passes(
    plan: MergePlan,
    files: Inputs,
    kept: Kept,
    pipeline: Pipeline | None,
    publication: Publication,
    progress: Progress | None,
) -> tuple[MergePlan, list[list[Statistics]], Moved]:
    """All passes: the plan as the last one knows it, with the sizes of experts, each output's statistics by pass, and
    the bytes moved."""
    statistics: list[list[Statistics]] = [[] for _ in plan.outputs]
    read = written = 0
    for number in range(plan.pass_count):
        if number == plan.pass_count - 1:
            plan = plan.knowing(statistics)
        gathered = [Statistics(len(plan.models)) for _ in plan.outputs]
        reading = Reading(plan, number, statistics, gathered, files, kept)
        moved = run_pass(
            reading.works(),
            reading.outputs(),
            publication,
            files,
            plan.chunk,
            progress,
            number=number,
            last=reading.last,
            lanes=plan.lanes,
            pipeline=pipeline,
        )
        read, written = read + moved.read, written + moved.written
        ordered = [found.in_order(plan.lead.tensors) for found in gathered]
        statistics = [[*earlier, now] for earlier, now in zip(statistics, ordered, strict=True)]
    return plan, statistics, Moved(read, written)


def _hashes(plan: MergePlan, folder: Path) -> dict[Path, str]:
    """Those of all input files, and of the output's as they lie in `folder`."""
    inputs = [header.file for header in plan.headers]
    return hash_files([*inputs, *(folder / file.name for file in plan.files)])
