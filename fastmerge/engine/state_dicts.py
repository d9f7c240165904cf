"""Merging state dicts in memory, for frameworks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..errors import InputError, MergeError, nearest
from ..formats.checkpoint import Checkpoint
from ..formats.dtypes import INTEGER_DTYPES, TORCH_DTYPES, dense_problems
from ..formats.safetensors import TensorInfo, limited
from ..forms import well_formed
from ..methods._declaration import Method, Statistics, Written
from ..recipe.outputs import delta_dtype
from ..recipe.parameters import Override, Parameters, declare
from ..recipe.preflight import Alignment, TensorPlan, align
from ..targets import matches
from .culprit import unequal
from .passes import TensorPass
from .statistics import Kept

StateDict = Mapping[str, Tensor]

CODES = {dtype: code for code, dtype in (TORCH_DTYPES | INTEGER_DTYPES).items()}


@dataclass(slots=True, repr=False)
class Merged:
    """`state_dict` is the merged model (of an EMR merge, base + unified task vector); `stats` the method's numbers.

    unified: by tensor the unified task vector, of its shape, and the packed masks, uint8 [K, ceil(N/8)], a row a task.
    experts: by task and tensor what a FREE or Twin merge has extracted. own: by task, in order, what is merged with no
    other, such as heads.
    """

    state_dict: dict[str, Tensor]
    stats: dict[str, dict[str, float]] = field(default_factory=dict)
    own: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    _base: StateDict = field(default_factory=dict)
    _tied: dict[str, str] = field(default_factory=dict)  # further names of merged tensors
    unified: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    experts: dict[str, dict[str, ops.Expert | ops.LowRank]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Merged({len(self.state_dict)} tensors, stats={self.stats})"

    @well_formed
    def task(self, name: str) -> dict[str, Tensor]:
        """One task's model: by its mask and its rescaler, or with its expert. InputError for other methods."""
        if not self.unified and not self.experts and "rescalers" not in self.stats:
            raise InputError("this method keeps no tasks apart: merge with emr or free, or with modulators=True")
        if name not in self.own:
            raise InputError(f"no task {name!r}{nearest(name, self.own)}; there are {', '.join(self.own)}")
        model = dict(self.state_dict)
        if self.experts:
            for tensor, expert in self.experts[name].items():
                if tensor not in self._tied:
                    model[tensor] = with_expert(model[tensor], expert, self.stats["scales"][name])
        else:
            row, scale = list(self.own).index(name), self.stats["rescalers"][name]
            for tensor, (unified, masks) in self.unified.items():
                if tensor not in self._tied:
                    model[tensor] = ops.modulate(self._base[tensor], unified, masks[row], scale)
        return model | {alias: model[twin] for alias, twin in self._tied.items()} | self.own[name]


@well_formed
def merge_state_dicts(
    method: str | Method,
    base: StateDict | None,
    models: Mapping[str, StateDict],
    *,
    task_specific: Sequence[str] = (),
    tensors: Sequence[Override] = (),
    **params: Any,
) -> Merged:
    """Merge state dicts held in memory, on whatever device they are; inputs are not changed.

    params: the method's. tensors: patterns of tensor names, and the parameters they change, as `merge` takes them.
    Tensors of the result have base's dtypes (the first model's, without a base). Tensors that match `task_specific`
    patterns stay base's in `state_dict` and are each task's own in `task(name)`. Names that share their memory in all
    inputs, as tied weights do, are merged once and share it in the result too. Raises InputError and MergeError as
    `merge` does.
    """
    _check_values(base, models, task_specific)
    tied = _tied([*([] if base is None else [base]), *models.values()], task_specific)
    base = None if base is None else _without(base, tied)
    models = {name: _without(state, tied) for name, state in models.items()}
    names = list(models)
    parameters, alignment = _prepared(method, base, models, params, tensors, task_specific, tied)
    declared = parameters.method
    _check_equal(alignment, base, models)
    own = {info.name: (base or {})[info.name] for info in alignment.base_specific}
    found = Merged(own, _base=base or {}, experts={name: {} for name in names})
    statistics, kept = list[Statistics](), Kept()
    for number in range(len(declared.passes(names, alignment.wide))):
        gathered = Statistics(len(names))
        for tensor in alignment.tensors:
            like = (base or models[names[0]])[tensor.name]
            if tensor.copy:
                found.state_dict[tensor.name] = like.clone()
                continue
            one = parameters.of(tensor.name).passes_on(tensor.subject, names, alignment.wide)[number]
            if not one.idle:
                work = TensorPass.of(tensor.subject, len(names), [one], [statistics], kept, like.device)
                _merge_tensor(work, tensor, declared, base, models, found)
                work.gather([gathered])
        statistics.append(gathered)
    for name, (delta, _) in found.unified.items():
        like = found._base[name]
        found.state_dict[name] = ops.combine(None, [like, delta], dtype=like.dtype).merged
    found._tied = alignment.tied | tied
    _restore_aliases(found)
    found.stats = {key: dict(zip(names, values, strict=True)) for key, values in declared.results(statistics).items()}
    found.own = {n: {info.name: models[n][info.name] for info in alignment.task_specific[n]} for n in names}
    found.experts = found.experts if any(found.experts.values()) else {}
    return found


def _prepared(
    method: str | Method,
    base: StateDict | None,
    models: Mapping[str, StateDict],
    params: Mapping[str, Any],
    overrides: Sequence[Override],
    task_specific: Sequence[str],
    tied: Mapping[str, str],
) -> tuple[Parameters, Alignment]:
    """The method's parameters by tensor, and which tensor serves as which, or an InputError."""
    names = list(models)
    parameters = declare(method, params, {}, overrides, names)
    declared = parameters.method
    if declared.uses_base and base is None:
        raise InputError([*declared.problems(names), f"{declared.name} needs a base model"])
    lead = None if base is None else _described(base, "base")
    alignment = align(lead, [_described(models[n], n) for n in names], task_specific=task_specific)
    problems = parameters.settle([tensor.name for tensor in alignment.merged], {**alignment.tied, **tied})
    if problems:
        raise InputError(problems)
    problems = parameters.remarks([tensor.subject for tensor in alignment.merged]).problems
    if problems:
        raise InputError(problems)
    return parameters, alignment


def _merge_tensor(
    work: TensorPass,
    tensor: TensorPlan,
    declared: Method,
    base: StateDict | None,
    models: Mapping[str, StateDict],
    found: Merged,
) -> None:
    """Carry out a pass over one tensor; what it writes joins what was found."""
    stored = [models[name][info.name] for name, info in zip(models, tensor.models, strict=True)]
    like = base[tensor.name] if base else stored[0]
    written = run_tensor(work, like if declared.uses_base else None, stored, like)
    if not work.acceptable([declared.nonfinite == "allow"]):
        _blame(tensor, *(([like, *stored], ["base", *models]) if base else (stored, list(models))))
    experts = work.shares[0].experts
    for name, expert in zip(models, experts, strict=bool(experts)):
        found.experts[name][tensor.name] = stored_expert(expert, like)
    if "merged" in written:
        found.state_dict[tensor.name] = written["merged"].view(like.shape)
    if "unified" in written:
        found.unified[tensor.name] = (written["unified"].view(like.shape), written["masks"])


def _check_values(base: StateDict | None, models: Mapping[str, StateDict], task_specific: Sequence[str]) -> None:
    """InputError where there is nothing to merge, or something that is no tensor."""
    if not models:
        raise InputError("there are no models to merge")
    states = {**({} if base is None else {"base": base}), **models}
    problems = [text for label, own in states.items() for text in _value_problems(own, label, task_specific)]
    if problems:
        raise InputError(problems)


def _tied(states: Sequence[StateDict], task_specific: Sequence[str]) -> dict[str, str]:
    """Names of the first state that share their memory in every state that has them, each with the first of them."""
    first, tied = dict[object, list[str]](), dict[str, str]()
    for name, tensor in states[0].items():
        if tensor.numel() and not matches(name, task_specific):
            twins = first.setdefault(_place(tensor), [])
            twin = next((twin for twin in twins if all(_ties(state, twin, name) for state in states)), None)
            if twin is None:
                twins.append(name)
            else:
                tied[name] = twin
    return tied


def _ties(state: StateDict, name: str, alias: str) -> bool:
    return alias not in state or (name in state and _place(state[name]) == _place(state[alias]))


def _place(tensor: Tensor) -> object:
    """What is equal of tensors that are one."""
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _without(state: StateDict, names: Collection[str]) -> StateDict:
    return {name: tensor for name, tensor in state.items() if name not in names}


def _value_problems(state: StateDict, label: str, task_specific: Sequence[str]) -> list[str]:
    wrong = [(name, value) for name, value in state.items() if not isinstance(value, Tensor)]
    problems = limited(wrong, lambda own: f"{label}: {own[0]!r} is of type {type(own[1]).__name__}; expected a tensor")
    return problems + dense_problems(state, label, task_specific)


def _described(state: StateDict, label: str) -> Checkpoint:
    """A state dict as preflight sees a checkpoint."""
    file, infos = Path(f"<{label}>"), {}
    for name, tensor in state.items():
        code = CODES.get(tensor.dtype, str(tensor.dtype))
        infos[name] = TensorInfo(name, code, tuple(tensor.shape), file, 0, 0)
    return Checkpoint(file, label, infos, {}, (), ())


def run_tensor(work: TensorPass, base: Tensor | None, models: Sequence[Tensor], like: Tensor) -> dict[Written, Tensor]:
    """The pass on one whole tensor, and what it wrote, 1-D; merged has the dtype of `like`."""
    own = None if base is None else base.detach().reshape(-1)
    flat = [t.detach().reshape(-1) for t in models]
    if work.needs_whole:
        work.prepare(own, flat)
    n, count = like.numel(), len(flat)
    memory: dict[Written, Callable[[], Tensor]] = {
        "merged": lambda: like.new_empty(n),
        "unified": lambda: like.new_empty(n, dtype=ops.working_dtype([like, *models])),
        "masks": lambda: like.new_empty((count, ops.packed_bytes(n)), dtype=torch.uint8),
    }
    written = {kind: memory[kind]() for kind in work.shares[0].one.writes}
    work.run(0, own, flat, [written])
    return written


def with_expert(tensor: Tensor, expert: ops.Expert | ops.LowRank, scale: float) -> Tensor:
    """A copy of the backbone's tensor, with scale · expert added."""
    if isinstance(expert, ops.LowRank):
        return ops.low_rank(tensor, *expert, scale)
    changed = tensor.clone()
    ops.scatter_add(changed, expert, scale)
    return changed


def stored_expert(expert: ops.Expert | ops.LowRank, like: Tensor) -> ops.Expert | ops.LowRank:
    """An expert with values as they are stored."""
    dtype = TORCH_DTYPES[delta_dtype(CODES[like.dtype])]
    if isinstance(expert, ops.LowRank):
        return ops.LowRank(*(ops.combine(None, [part], dtype=dtype).merged for part in expert))
    return expert._replace(values=ops.combine(None, [expert.values], dtype=dtype).merged)


def _blame(tensor: TensorPlan, tensors: Sequence[Tensor], labels: Sequence[str]) -> None:
    bad = [label for label, t in zip(labels, tensors, strict=True) if ops.combine(None, [t]).nonfinite]
    if not bad:
        raise MergeError(f"tensor {tensor.name!r}: the result leaves the range of its dtype")
    raise MergeError(
        f"tensor {tensor.name!r}: NaN or infinity in {', '.join(bad)}; pass nonfinite='allow' to let it be"
    )


def _check_equal(alignment: Alignment, base: StateDict | None, models: Mapping[str, StateDict]) -> None:
    """Integer tensors are copied, and must be equal; so must names that count as tied, since some model has not all."""
    found = [
        f"{label}: the tensors {tensor.name!r} and {alias!r} differ, of which another model has one; give both to each"
        for label, state in [*([("base", base)] if base else []), *models.items()]
        for tensor in alignment.tensors
        for alias in tensor.aliases
        if {tensor.name, alias} <= state.keys() and not torch.equal(state[tensor.name], state[alias])
    ]
    for tensor in (own for own in alignment.tensors if own.copy):
        states = zip(models.items(), tensor.models, strict=True)
        every = ([("base", base[tensor.name])] if base else []) + [(n, own[info.name]) for (n, own), info in states]
        found += unequal(tensor, [label for label, _ in every], [value for _, value in every])
    if found:
        raise MergeError("\n".join(limited(found)))


def _restore_aliases(found: Merged) -> None:
    """Tied names are one tensor again."""
    by_name: list[dict[str, Any]] = [found.state_dict, found.unified, *found.experts.values()]
    for alias, name in found._tied.items():
        for own in by_name:
            if name in own:
                own[alias] = own[name]
