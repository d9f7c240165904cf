"""What is written beside the weights: index, configuration, tokenizer, the record, and the model card made of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import __version__, gpus
from ..formats import emr, experts, record
from ..formats.checkpoint import Checkpoint, open_checkpoint
from ..formats.folder import copy_side_files, encoded, model_card, printable, set_dtype, write_json
from ..formats.record import CheckpointRecord, FileRecord, MergeRecord
from ..formats.tasks import BaseRecord
from ..methods._declaration import Statistics
from ..recipe.merge_plan import MergePlan
from ..recipe.options import dtype_name
from ..recipe.outputs import Output

METHOD = "task"  # of a record that is one task's model of a folder of tasks
Hashes = Mapping[Path, str]


def write_side_files(
    plan: MergePlan,
    output: Output,
    folder: Path,
    statistics: Statistics,
    results: Mapping[str, list[float]],
    hashes: Hashes,
) -> None:
    """Write them for one output; `folder` holds all of them, `statistics` are its last pass's."""
    own = folder / output.folder
    for layout in output.layouts.values():
        if layout.index is not None:
            (folder / layout.index_name).write_bytes(layout.index)
    for name, data in plan.beside.items():
        if data is not None:
            (own / name).write_bytes(data)
    if plan.lead.config and plan.dtype and "config.json" not in plan.beside:
        write_json(own / "config.json", set_dtype(plan.lead.config, dtype_name(plan.dtype)))
    copy_side_files(plan.lead.folders[0], own, plan.beside)
    if "unified" in output.layouts:
        _write_emr_record(plan, output, own, statistics, results)
    if output.experts:
        _write_experts_record(plan, output, own, results)
    for model in plan.models:
        if model.config and model.label in output.heads:
            write_json(own / "tasks" / model.label / "config.json", model.config)
    merged = merge_record(plan, output, folder, results, hashes)
    write_json(own / record.RECORD, merged.content())
    (own / "README.md").write_bytes(encoded(card(merged, output.name or (plan.out.name if plan.out else ""))))


def merge_record(
    plan: MergePlan, output: Output, folder: Path, results: Mapping[str, list[float]], hashes: Hashes
) -> MergeRecord:
    """The record of an output that lies in `folder`."""
    return MergeRecord(
        fastmerge=__version__,
        backend="cuda" if gpus.is_gpu(plan.device) else None,
        method=output.method.name,
        reference=output.method.source,
        **_said(plan, output),
        task_specific=list(plan.task_specific),
        rename={label: [(old, new) for old, new in pairs] for label, pairs in plan.rename.items()},
        vocab=None if plan.vocab == "error" else plan.vocab,
        dtype=dtype_name(plan.dtype) if plan.dtype else None,
        base=_input(plan, plan.inputs["base"], hashes) if "base" in plan.inputs else None,
        models={label: _input(plan, own, hashes) for label, own in plan.inputs.items() if label != "base"},
        results=dict(results),
        files=file_records(output, folder, hashes),
    )


def _said(plan: MergePlan, output: Output) -> dict[str, Any]:
    """The parameters as a recipe would say them, or as a configuration of mergekit's says them."""
    own = output.parameters.record()
    return own if plan.mergekit is None else {"params": own["params"], "mergekit": dict(plan.mergekit)}


def file_records(output: Output, folder: Path, hashes: Hashes) -> list[FileRecord]:
    """The files of an output that lies in `folder`."""
    return [
        FileRecord(
            file=file.name.removeprefix(output.folder),
            size=file.size,
            header_sha256=hashlib.sha256(file.header[8:]).hexdigest(),
            sha256=hashes.get(folder / file.name),
        )
        for layout in output.all_layouts
        for file in layout.files
    ]


def card(merged: MergeRecord, title: str) -> str:
    """The model card of a folder."""
    lines = [f"Merged from {len(merged.models)} models with `{merged.method}` ({merged.reference})."]
    if merged.method == METHOD:
        task, method = (merged.params.get(key) for key in ("task", "of"))
        lines = [f"Task `{task}` of a merge with `{method}` ({merged.reference})."]
    if "rescalers" in merged.results:
        lines.append("\nAn EMR artefact: `fastmerge task THIS_FOLDER NAME --out FOLDER` gives one task's model.")
    if "scales" in merged.results:
        lines.append("\nA folder of experts: `fastmerge.runtime.load(THIS_FOLDER)` gives a model that switches tasks.")
    return model_card(title, lines, merged.content())


def _input(plan: MergePlan, checkpoint: Checkpoint, hashes: Hashes) -> CheckpointRecord:
    files = [
        FileRecord(file=printable(h.file.name), size=h.size, header_sha256=h.digest, sha256=hashes.get(h.file))
        for h in checkpoint.headers
    ]
    return CheckpointRecord(source=printable(plan.sources[checkpoint.label]), files=files)


def _write_emr_record(
    plan: MergePlan, output: Output, folder: Path, statistics: Statistics, results: Mapping[str, list[float]]
) -> None:
    files = _emr_files(output)
    artefact = emr.EmrRecord(
        **tasks_record(plan, output),
        rescalers=results["rescalers"],
        unified=files["unified"],
        masks=files["masks"],
        tensors={
            name: emr.TensorSums(magnitude=sums[0].tolist(), kept=sums[1].tolist())
            for name, sums in statistics.sums.items()
        },
    )
    write_json(folder / emr.RECORD, artefact.model_dump(mode="json"))


def _write_experts_record(plan: MergePlan, output: Output, folder: Path, results: Mapping[str, list[float]]) -> None:
    params = output.parameters.record()["params"]
    kept = {"density": params.get("expert_density"), "scope": params.get("scope"), "rank": params.get("rank")}
    written = experts.ExpertsRecord(
        **tasks_record(plan, output),
        experts={
            name: experts.ExpertRecord(file=f"{name}.safetensors", scale=scale, **kept)
            for name, scale in zip(plan.names, results["scales"], strict=True)
        },
        backbone=open_checkpoint(folder, "backbone").identity(),
    )
    write_json(folder / experts.RECORD, written.model_dump(mode="json", exclude_none=True))


def tasks_said(plan: MergePlan, output: Output) -> dict[str, dict[str, Any]]:
    """By the name of a record of tasks, what it says beside numbers, parameters and base."""
    own: dict[str, dict[str, Any]] = {}
    if "unified" in output.layouts:
        own[emr.RECORD] = _emr_files(output)
    if output.experts:
        own[experts.RECORD] = {"experts": {name: f"{name}.safetensors" for name in plan.names}}
    same = ("tasks", "aliases", "copied", "replaced")
    return {name: {key: tasks_record(plan, output)[key] for key in same} | said for name, said in own.items()}


def _emr_files(output: Output) -> dict[str, list[str]]:
    """The files of the kinds that an EMR artefact has."""
    return {
        kind: [file.name.removeprefix(output.folder) for file in layout.files]
        for kind, layout in output.layouts.items()
    }


def tasks_record(plan: MergePlan, output: Output) -> dict[str, Any]:
    """What the records of all folders of tasks say."""
    assert plan.base is not None
    return {
        "fastmerge": __version__,
        "method": output.method.name,
        "params": output.parameters.record()["params"],
        "tasks": plan.names,
        "base": BaseRecord(source=printable(plan.sources["base"]), files=plan.base.identity()),
        "aliases": {t.name: list(t.aliases) for t in plan.alignment.tensors if t.aliases},
        "copied": [t.name for t in plan.alignment.tensors if t.copy],
        "replaced": [info.name for info in plan.alignment.base_specific],
    }
