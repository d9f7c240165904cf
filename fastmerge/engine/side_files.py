"""What is written beside the weights: index, configuration, tokenizer, model card, the record of an EMR artefact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import __version__
from ..formats.checkpoint import Checkpoint
from ..formats.emr import RECORD, EmrRecord, TensorSums
from ..formats.folder import copy_side_files, model_card, set_dtype, write_json
from ..formats.tasks import BaseRecord
from ..methods._declaration import Statistics
from ..recipe.plan import DTYPE_NAMES, MergePlan, Output


def write_side_files(
    plan: MergePlan, output: Output, folder: Path, statistics: Statistics, results: Mapping[str, list[float]]
) -> None:
    """Write them for one output; `folder` holds all of them, `statistics` are its last pass's."""
    own = folder / output.folder
    for layout in output.layouts.values():
        if layout.index is not None:
            (folder / layout.index_name).write_bytes(layout.index)
    if plan.lead.config and plan.dtype:
        name = next(name for name, code in DTYPE_NAMES.items() if code == plan.dtype)
        write_json(own / "config.json", set_dtype(plan.lead.config, name))
    copy_side_files(plan.lead.path, own)
    if "unified" in output.layouts:
        _write_record(plan, output, own, statistics, results)
        for model in plan.models:
            if model.config and model.label in output.heads:
                write_json(own / "tasks" / model.label / "config.json", model.config)
    recipe = {
        "fastmerge": __version__,
        "method": output.method.name,
        "params": output.method.model_dump(mode="json"),
        "base": None if plan.base is None else _source(plan, plan.base),
        "models": {model.label: _source(plan, model) for model in plan.models},
    }
    lines = [f"Merged from {len(plan.models)} models with `{output.method.name}` ({output.method.source})."]
    if "unified" in output.layouts:
        lines.append("\nAn EMR artefact: `fastmerge task THIS_FOLDER NAME --out FOLDER` gives one task's model.")
    title = output.name or (plan.out.name if plan.out else "")
    (own / "README.md").write_text(model_card(title, lines, recipe), encoding="utf-8")


def _source(plan: MergePlan, checkpoint: Checkpoint) -> dict[str, Any]:
    return {"source": plan.sources[checkpoint.label], "files": checkpoint.identity()}


def _write_record(
    plan: MergePlan, output: Output, folder: Path, statistics: Statistics, results: Mapping[str, list[float]]
) -> None:
    assert plan.base is not None
    files = {
        kind: [file.name.removeprefix(output.folder) for file in output.layouts[kind].files] for kind in output.layouts
    }
    record = EmrRecord(
        fastmerge=__version__,
        method=output.method.name,
        params=output.method.model_dump(mode="json"),
        tasks=plan.names,
        rescalers=results["rescalers"],
        base=BaseRecord(**_source(plan, plan.base)),
        unified=files["unified"],
        masks=files["masks"],
        tensors={
            name: TensorSums(magnitude=sums[0].tolist(), kept=sums[1].tolist())
            for name, sums in statistics.sums.items()
        },
        aliases={t.name: list(t.aliases) for t in plan.alignment.tensors if t.aliases},
        copied=[t.name for t in plan.alignment.tensors if t.copy],
        replaced=[info.name for info in plan.alignment.base_specific],
    )
    write_json(folder / RECORD, record.model_dump(mode="json"))
