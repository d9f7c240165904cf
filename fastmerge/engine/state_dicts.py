"""Merging state dicts in memory, for frameworks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..errors import InputError, MergeError, nearest
from ..formats.checkpoint import Checkpoint
from ..formats.safetensors import TensorInfo
from ..methods import build
from ..methods._declaration import Block, Method, Pass, Statistics
from ..recipe.preflight import Alignment, TensorPlan, align
from .mapping import TORCH_DTYPES

StateDict = Mapping[str, Tensor]

CODES = {dtype: code for code, dtype in TORCH_DTYPES.items()} | {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
}


@dataclass(slots=True)
class Merged:
    """`state_dict` is the merged model (of an EMR merge, base + unified task vector); `stats` the method's numbers."""

    state_dict: dict[str, Tensor]
    stats: dict[str, dict[str, float]] = field(default_factory=dict)
    _tasks: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    _base: StateDict = field(default_factory=dict)
    _unified: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def task(self, name: str) -> dict[str, Tensor]:
        """One task's model, from the unified task vector, its mask and its rescaler. InputError for other methods."""
        if not self._unified and "rescalers" not in self.stats:
            raise InputError("this method keeps no tasks apart: merge with emr, or with modulators=True")
        if name not in self._tasks:
            raise InputError(f"no task {name!r}{nearest(name, self._tasks)}; there are {', '.join(self._tasks)}")
        row, scale = list(self._tasks).index(name), self.stats["rescalers"][name]
        own = dict(self.state_dict)
        for tensor, (unified, masks) in self._unified.items():
            own[tensor] = ops.modulate(self._base[tensor], unified, masks[row], scale)
        return own | self._tasks[name]


def merge_state_dicts(
    method: str | Method,
    base: StateDict | None,
    models: Mapping[str, StateDict],
    *,
    task_specific: Sequence[str] = (),
    **params: Any,
) -> Merged:
    """Merge state dicts held in memory, on whatever device they are; inputs are not changed.

    params: the method's. Tensors of the result have base's dtypes (the first model's, without a base). Tensors that
    match `task_specific` patterns stay base's in `state_dict` and are each task's own in `task(name)`. Raises
    InputError and MergeError as `merge` does.
    """
    declared = method if isinstance(method, Method) else build(method, params)
    names = list(models)
    problems = declared.problems(names) if names else ["there are no models to merge"]
    if declared.uses_base and base is None:
        problems.append(f"{declared.name} needs a base model")
    if problems:
        raise InputError(problems)
    lead = None if base is None else _described(base, "base")
    alignment = align(lead, [_described(models[n], n) for n in names], task_specific=task_specific)

    statistics: list[Statistics] = []
    merged: dict[str, Tensor] = {info.name: (base or {})[info.name] for info in alignment.base_specific}
    unified: dict[str, tuple[Tensor, Tensor]] = {}
    for one in declared.passes(names):
        gathered = Statistics(len(names))
        for tensor in alignment.tensors:
            like = (base or models[names[0]])[tensor.name]
            stored = [models[name][info.name] for name, info in zip(names, tensor.models, strict=True)]
            if tensor.copy:
                _check_equal(tensor, ["base", *names] if base else names, [like, *stored] if base else stored)
                merged[tensor.name] = like.clone()
                continue
            block = _run(declared, one, like, stored, statistics)
            if declared.nonfinite == "error" and (block.nonfinite or not _finite(block)):
                _blame(tensor, ([like] if base else []) + stored, (["base"] if base else []) + names)
            gathered.sizes[tensor.name] = tensor.numel
            gathered.sums[tensor.name] = [] if block.sums is None else block.sums.tolist()
            if block.merged is not None:
                merged[tensor.name] = block.merged.view(like.shape)
            if block.unified is not None and block.masks is not None:
                unified[tensor.name] = (block.unified.view(like.shape), block.masks)
        statistics.append(gathered)
    for name, (delta, _) in unified.items():
        like = (base or {})[name]
        merged[name] = ops.combine(None, [like, delta], dtype=like.dtype).merged
    _restore_aliases(alignment, merged, unified)
    stats = {key: dict(zip(names, values, strict=True)) for key, values in declared.results(statistics).items()}
    heads = {n: {info.name: models[n][info.name] for info in alignment.task_specific[n]} for n in names}
    return Merged(merged, stats, heads, base or {}, unified)


def _described(state: StateDict, label: str) -> Checkpoint:
    """A state dict as preflight sees a checkpoint."""
    file, infos = Path(f"<{label}>"), {}
    for name, tensor in state.items():
        code = CODES.get(tensor.dtype, str(tensor.dtype))
        infos[name] = TensorInfo(name, code, tuple(tensor.shape), file, 0, 0)
    return Checkpoint(file, label, infos, {}, (), ())


def _run(method: Method, one: Pass, like: Tensor, stored: list[Tensor], earlier: Sequence[Statistics]) -> Block:
    """The pass on one whole tensor, with outputs like `like`."""
    flat = [t.detach().reshape(-1) for t in stored]
    block = Block(flat, like.detach().reshape(-1) if method.uses_base else None)
    block.sums = torch.zeros(one.rows, len(stored), dtype=torch.float64, device=like.device)
    n = like.numel()
    if "merged" in one.writes:
        block.merged = torch.empty(n, dtype=like.dtype, device=like.device)
    if "unified" in one.writes:
        block.unified = torch.empty(n, dtype=ops.working_dtype([like, *stored]), device=like.device)
    if "masks" in one.writes:
        block.masks = torch.empty(len(stored), ops.packed_bytes(n), dtype=torch.uint8, device=like.device)
    one.run(block, earlier)
    return block


def _finite(block: Block) -> bool:
    return block.sums is None or bool(block.sums.isfinite().all())


def _blame(tensor: TensorPlan, tensors: Sequence[Tensor], labels: Sequence[str]) -> None:
    bad = [label for label, t in zip(labels, tensors, strict=True) if ops.combine(None, [t]).nonfinite]
    if not bad:
        raise MergeError(f"tensor {tensor.name!r}: the result leaves the range of its dtype")
    raise MergeError(
        f"tensor {tensor.name!r}: NaN or infinity in {', '.join(bad)}; pass nonfinite='allow' to let it be"
    )


def _check_equal(tensor: TensorPlan, labels: Sequence[str], tensors: Sequence[Tensor]) -> None:
    for label, other in zip(labels[1:], tensors[1:], strict=True):
        if not torch.equal(tensors[0], other):
            raise MergeError(f"tensor {tensor.name!r} ({tensor.dtype}) differs between {labels[0]} and {label}")


def _restore_aliases(
    alignment: Alignment, merged: dict[str, Tensor], unified: dict[str, tuple[Tensor, Tensor]]
) -> None:
    for tensor in alignment.tensors:
        for alias in tensor.aliases:
            merged[alias] = merged[tensor.name]
            if tensor.name in unified:
                unified[alias] = unified[tensor.name]
