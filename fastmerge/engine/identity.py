"""What a merge depends on: its fingerprint tells it from another, that of its inputs whether statistics still hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .. import __version__, dispatch, gpus
from ..formats.expanded import is_computed, place
from ..formats.layout import Layout
from ..formats.safetensors import Header
from ..recipe.merge_plan import MergePlan


def fingerprint(plan: MergePlan) -> dict[str, Any]:
    """Everything that decides the bytes of a merge, by the name that a person knows it by."""
    found: dict[str, Any] = {
        "fastmerge": __version__,
        "backend": backend(plan.device),
        "method": plan.method.name,
        "models": plan.names,
        "dtype": plan.dtype,
        "task_specific": plan.task_specific,
        "rename": plan.rename,
        "vocab": plan.vocab,
    }
    for output in plan.outputs:
        found |= {output.folder + name: value for name, value in output.parameters.record()["params"].items()}
        found |= layout_files(output.all_layouts)
    for i, (patterns, changed) in enumerate(plan.outputs[0].parameters.overrides):
        found[f"tensors[{i}], {', '.join(patterns)}"] = changed
    found |= input_files({c.label: c.headers for c in plan.checkpoints})
    return found | {"the choice of tensors": digest(_tensors(plan))}


def inputs_key(plan: MergePlan) -> str:
    """Short for what statistics of the inputs depend on: their files, in order, and which tensor serves as which."""
    files = input_files({str(k): checkpoint.headers for k, checkpoint in enumerate(plan.checkpoints)})
    names = [[t.name, *(info.name for info in t.models)] for t in plan.alignment.tensors]
    twins = [own for own in names if len(set(own)) > 1]
    computed = [info for t in plan.alignment.tensors for info in (t.base, *t.models) if is_computed(info)]
    who = [__version__, backend(plan.device), plan.base is None, plan.alignment.wide]
    how = [*who, plan.rename, twins, *map(place, computed)]
    if plan.mergekit is not None or plan.vocab != "error":  # tensors may have been renamed, or resized
        how.append(_tensors(plan))
    return digest([how, files])[:16]


def input_files(headers: Mapping[str, Sequence[Header]]) -> dict[str, Any]:
    """The files of the inputs by their names, without a look at their weights."""
    return {
        f"{name}'s {header.file.name}": {
            "path": str(header.file.resolve()),
            "size": header.size,
            "time": header.modified,
            "header": header.digest,
        }
        for name, files in headers.items()
        for header in files
    }


def layout_files(layouts: Sequence[Layout]) -> dict[str, Any]:
    """The files of the result."""
    return {
        f"the result's {file.name}": {"size": file.size, "header": hashlib.sha256(file.header).hexdigest()}
        for layout in layouts
        for file in layout.files
    }


def backend(device: str = "cpu") -> str:
    """Which backend merges on a settled device; sums agree to the bit on one of them only."""
    return dispatch.choose("combine", "cuda" if gpus.is_gpu(device) else "cpu").__module__.split(".")[2]


def _tensors(plan: MergePlan) -> list[Any]:
    """Which stored tensor serves as which, whatever names, patterns and configurations have led to it."""
    alignment = plan.alignment
    rows: list[Any] = [[t.name, t.copy, t.aliases, *map(place, (t.base, *t.models))] for t in alignment.tensors]
    own = {label: [place(info) for info in infos] for label, infos in alignment.task_specific.items()}
    return [rows, own, [place(info) for info in alignment.base_specific]]


def digest(content: Any) -> str:
    """A hash of JSON."""
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()
