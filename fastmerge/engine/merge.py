"""Merging checkpoints on disk: a plan's passes, streamed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import dispatch
from ..errors import InputError
from ..formats.mapping import Inputs
from ..methods._declaration import Method, Statistics
from ..recipe.parameters import Override
from ..recipe.plan import SLOTS, MergePlan, plan
from ..recipe.preflight import Rename
from .publish import Publication
from .report import Report
from .side_files import write_side_files
from .statistics import Kept
from .stream import slot_bytes, stream
from .works import Reading
from .writer import Writer

Progress = Callable[[int], None]


def merge(
    method: str | Method,
    base: str | Path | None = None,
    models: Mapping[str, str | Path] | Sequence[tuple[str, str | Path]] = (),
    out: str | Path | None = None,
    params: Mapping[str, Any] | None = None,
    *,
    tensors: Sequence[Override] = (),
    outputs: Mapping[str, Mapping[str, Any]] | None = None,
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
        tensors=tensors,
        outputs=outputs,
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
    kept = Kept()
    statistics: list[list[Statistics]] = [[] for _ in plan.outputs]
    with Publication(plan.out, plan.overwrite) as folder:
        for number in range(plan.pass_count):
            gathered = [Statistics(len(plan.models)) for _ in plan.outputs]
            reading = Reading(plan, number, statistics, gathered, files, kept)
            works = reading.works()
            written = [output.layouts[kind] for output in plan.outputs for kind in reading.writes(output)]
            written += [layout for output in plan.outputs if reading.last for layout in output.heads.values()]
            outputs = [file for layout in written for file in layout.files]
            with Writer(folder, outputs, SLOTS, slot_bytes(works, plan.chunk)) as writer:
                stream(works, files, writer, plan.chunk, progress)
            statistics = [[*earlier, now] for earlier, now in zip(statistics, gathered, strict=True)]
        results = [o.method.results(found) for o, found in zip(plan.outputs, statistics, strict=True)]
        for output, found, numbers in zip(plan.outputs, statistics, results, strict=True):
            write_side_files(plan, output, folder, found[-1], numbers)
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
        results={o.folder + key: r[key] for o, r in zip(plan.outputs, results, strict=True) for key in r},
        notes=list(plan.notes),
    )
