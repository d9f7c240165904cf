"""One result of a merge: its parameters, its files, and what each pass does with a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..formats.checkpoint import Checkpoint
from ..formats.experts import expert_layout
from ..formats.layout import SHARD_LIMIT, Layout, plan_layout
from ..formats.safetensors import DTYPES, FLOATS
from ..methods._declaration import ExpertSize, Method, Pass, Statistics, Written
from .parameters import Parameters
from .preflight import Alignment, TensorPlan


@dataclass(frozen=True, slots=True)
class Output:
    """One result of a merge: its parameters, and its files by what they hold; `heads` and `experts` are those per task.

    `folder` is where it lies in the output folder: "" for the only one, else "NAME/".
    """

    name: str
    parameters: Parameters
    layouts: dict[Written, Layout]
    heads: dict[str, Layout]
    experts: dict[str, Layout]

    @property
    def method(self) -> Method:
        return self.parameters.method

    @property
    def folder(self) -> str:
        return f"{self.name}/" if self.name else ""

    @property
    def all_layouts(self) -> list[Layout]:
        return [*self.layouts.values(), *self.experts.values(), *self.heads.values()]


def plan_output(
    name: str,
    parameters: Parameters,
    alignment: Alignment,
    lead: Checkpoint,
    names: Sequence[str],
    dtype: str | None,
) -> Output:
    """An output with its files by what they hold, and those of each task's own tensors."""
    method, folder = parameters.method, f"{name}/" if name else ""
    written = {kind for one in method.passes(names, alignment.wide) for kind in one.writes}
    stamp = {"fastmerge.method": method.name}
    layouts: dict[Written, Layout] = {}
    heads: dict[str, Layout] = {}
    if "merged" in written:
        entries = {t.name: (t.name, own_dtype(t.dtype, dtype), t.shape) for t in alignment.base_specific}
        for tensor in alignment.tensors:
            stored = tensor.dtype if tensor.copy else dtype or tensor.dtype
            entries |= {name: (name, stored, tensor.shape) for name in (tensor.name, *tensor.aliases)}
        stem, limit = ("model", SHARD_LIMIT) if lead.adapter is None else ("adapter_model", 1 << 62)
        layouts["merged"] = plan_layout(
            [entries[n] for n in lead.tensors if n in entries], stem, limit=limit, metadata=stamp, folder=folder
        )
    if "unified" in written:
        stamp |= {"fastmerge.format": "emr", "fastmerge.format_version": "1"}
        unified = [(t.name, dtype or delta_dtype(t.dtype), t.shape) for t in alignment.merged]
        layouts["unified"] = plan_layout(unified, "unified", metadata=stamp, folder=folder)
        masks = [(t.name, "U8", (len(names), -(-t.numel // 8))) for t in alignment.merged]
        layouts["masks"] = plan_layout(masks, "masks", metadata=stamp, folder=folder)
    if "unified" in written or any(one.experts for one in method.passes(names, alignment.wide)):
        heads = {
            label: plan_layout(
                [(t.name, t.dtype, t.shape) for t in infos], limit=1 << 62, folder=f"{folder}tasks/{label}/"
            )
            for label, infos in alignment.task_specific.items()
            if infos
        }
    output = Output(name, parameters, layouts, heads, {})
    return replace(output, experts=plan_experts(output, alignment, names, dtype, []))


def passes_on(
    parameters: Parameters, tensor: TensorPlan, names: Sequence[str], alignment: Alignment
) -> tuple[Pass, ...]:
    return parameters.of(tensor.name).passes_on(tensor.subject, names, alignment.wide)


def plan_experts(
    output: Output, alignment: Alignment, names: Sequence[str], dtype: str | None, statistics: Sequence[Statistics]
) -> dict[str, Layout]:
    """The files of an output's experts by model, as the statistics of the passes before decide them."""
    entries: dict[str, list[tuple[str, int, ExpertSize, str]]] = {}
    for tensor in alignment.tensors:
        count = None if tensor.copy else passes_on(output.parameters, tensor, names, alignment)[-1].experts
        for name, size in zip(names, count(tensor.subject, statistics) if count else (), strict=False):
            stored = dtype or delta_dtype(tensor.dtype)
            entries.setdefault(name, []).append((tensor.name, tensor.numel, size, stored))
    return {name: expert_layout(name, own, output.folder) for name, own in entries.items()}


def own_dtype(stored: str, dtype: str | None) -> str:
    """What a tensor of base's own is written in, where the result has a dtype."""
    return dtype if dtype and stored in FLOATS else stored


def delta_dtype(dtype: str) -> str:
    """What a task vector of a tensor of this dtype is stored in."""
    return "BF16" if DTYPES[dtype] == 2 else dtype
