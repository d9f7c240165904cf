"""fastmerge inside mergekit: its own methods by name, and its arithmetic for mergekit's.

    python -m fastmerge.bindings.mergekit [--take-over] CONFIG OUT …     mergekit-yaml, with these methods; its options

or, in a program of one's own, before a configuration is read:

    import fastmerge.bindings.mergekit as binding
    binding.register()

`register` adds emr, fr and free. All their parameters stand in `parameters`, as in fastmerge's recipes, but that FR's
`coefficient` is each model's. `task` names a model (by its path, or the end of it) whose own model is wanted: of emr,
base + rescaler · mask ⊙ unified, of free the backbone with the task's expert. What such methods have to know of the
whole model is read from the checkpoints when the first tensor is merged; so they merge no slices, and no other tokens
than those on disk.

With `take_over`, fastmerge also does the arithmetic of mergekit's methods of task vectors, and gives the bytes that
`fastmerge run` gives, unless `dtype` is narrower than what is stored (mergekit rounds inputs to it first) or an input
is a LoRA that mergekit has merged.

Needs mergekit 0.1.5 or newer.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mergekit.io.tasks import LoaderCache
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import (
    BasePolicy,
    GroupMergeMethod,
    InputContract,
    MergeMethodSpec,
    ParameterScope,
    ParameterSpec,
    TensorGroup,
)
from mergekit.plan import MergePlanner
from torch import Tensor

from fastmerge import methods, ops
from fastmerge.engine.gather import gather_statistics
from fastmerge.engine.passes import TensorPass
from fastmerge.engine.state_dicts import run_tensor, stored_expert, with_expert
from fastmerge.engine.statistics import Kept
from fastmerge.errors import InputError, nearest
from fastmerge.methods._declaration import Method, Statistics, Subject, Written
from fastmerge.recipe.mergekit.methods import FAMILY, MergekitMethod
from fastmerge.recipe.mergekit.recipe import labels_of
from fastmerge.recipe.parameters import singular
from fastmerge.recipe.plan import plan

OURS = ("emr", "fr", "free")


def register(*, take_over: bool = False) -> None:
    """Make emr, fr and free known to mergekit; with `take_over`, do the arithmetic of its methods of task vectors."""
    known = {method.spec.name for method in registry.registered_methods()}
    for name in OURS:
        if name not in known:
            registry.register(Ours(name))
    if MergePlanner.normalize_config is not _normalize_config:
        MergePlanner.normalize_config = _normalize_config  # type: ignore[method-assign,unused-ignore]
    for method in FAMILY if take_over else ():
        stock = registry.get(method.name)
        if not isinstance(stock, TakenOver):
            registry._METHODS[method.name] = TakenOver(method, replace(stock.spec, uses_accelerator=False))


_normalize = MergePlanner.normalize_config


@functools.wraps(_normalize)
def _normalize_config(planner: Any) -> None:
    """mergekit's own, after which all is slices; a method is told neither their layers nor how many there are."""
    _normalize(planner)
    if isinstance(planner._method, Ours) and not _whole(planner):
        raise planner._method.refusal()


def _whole(planner: Any) -> bool:
    """Whether every module is one slice of all layers of its models."""
    modules = planner.config.modules
    if modules.keys() != planner.arch_info.modules.keys():
        return False
    for name, module in modules.items():
        architecture = planner.arch_info.modules[name].architecture
        for source in module.slices[0].sources:
            layers = architecture.num_layers(source.model.config(planner.options.trust_remote_code))
            if len(module.slices) > 1 or tuple(source.layer_range) != (0, layers):
                return False
    return True


@dataclass(frozen=True)
class TakenOver(GroupMergeMethod):  # type: ignore[misc,unused-ignore]
    """A method of mergekit's, with its parameters and fastmerge's arithmetic."""

    method: MergekitMethod
    spec: MergeMethodSpec

    def merge_group(self, group: TensorGroup, /, **parameters: Any) -> Tensor:
        names = [parameter.name for parameter in self.method.own]
        shared = {parameter.name: parameters[parameter.name] for parameter in self.method.shared}
        own = [{name: parameters[name][entry.id] for name in names} for entry in group.non_base]
        if not own:
            base: Tensor = group.base.tensor
            return base
        said = self.method.translate(shared, own)
        if "seed" in self.method.declared.model_fields:
            said["seed"] = torch.initial_seed()  # what mergekit's --random-seed has set
        declared = methods.build(self.method.declared, said)
        return _Tensor.of(group).merged(declared, [])


class Ours(GroupMergeMethod):  # type: ignore[misc,unused-ignore]
    """A method that mergekit does not have."""

    def __init__(self, name: str) -> None:
        self.declared = methods.get(name)
        fields = self.declared.model_fields
        self.singular = singular(self.declared)
        shared = [name for name in fields if name not in self.declared.by_model or not _numeric(fields[name].default)]
        parameters = [ParameterSpec(name, Any, ParameterScope.SHARED, default=fields[name].default) for name in shared]
        own = [ParameterSpec(name, float | None, ParameterScope.NON_BASE, default=None) for name in self.singular]
        task = ParameterSpec("task", str | None, ParameterScope.SHARED, default=None)
        self.spec = MergeMethodSpec(
            name=name,
            parameters=(*parameters, *own, *(() if name == "fr" else (task,))),
            contract=InputContract(base=BasePolicy.REQUIRED, min_non_base=1),
            pretty_name={"emr": "EMR-Merging", "fr": "FR-Merging", "free": "FREE-Merging"}[name],
            reference_url=f"https://arxiv.org/abs/{'2405.17461' if name == 'emr' else '2411.16815'}",
            uses_accelerator=False,
        )

    def refusal(self, reason: str = "") -> InputError:
        """Of models that are not merged as they lie on disk, where the method looks at them first."""
        name, there = self.spec.name, f"; {reason}" if reason else ""
        instead = "use `fastmerge run`" if name == "fr" else "write such models out first"
        return InputError(
            f"merge_method: `{name}` inside mergekit needs whole models with the same tokens{there}; {instead}"
        )

    def merge_group(self, group: TensorGroup, /, task: str | None = None, **parameters: Any) -> Tensor:
        changed = _changed(group)
        if changed:
            raise self.refusal(f"{group.metadata.name} of {', '.join(changed)} has other rows than on disk")
        tensor = _Tensor.of(group)
        per_model = {name: parameters.pop(name) for name in self.singular}
        own = {name: [values[entry.id] for entry in group.non_base] for name, values in per_model.items()}
        said = {name: value for name, value in parameters.items() if value != self.declared.model_fields[name].default}
        for name, values in own.items():
            if any(value is not None for value in values):
                said[self.singular[name]] = [1.0 if value is None else value for value in values]
        declared = methods.build(self.declared, said)
        try:
            if task is None:
                return tensor.merged(declared, tensor.statistics(declared, whole=False))
            return tensor.of_task(declared, tensor.index(task))
        except _UnlikeError as error:
            raise self.refusal(error.problems[0].partition(";")[0]) from None


def _changed(group: TensorGroup) -> list[str]:
    """The models whose rows for tokens mergekit has put in another order, filled up or cut."""
    name = group.metadata.name
    if name is None or group.metadata.vocabulary_axis is None:
        return []
    found = []
    for entry in group.entries:
        loader = LoaderCache().get(entry.id)
        if name in loader.index.tensor_paths:
            stored = loader.get_tensor(name).to(entry.tensor)
            if stored.shape != entry.tensor.shape or not torch.equal(stored.nan_to_num(), entry.tensor.nan_to_num()):
                found.append(str(entry.id))
    return found


class _UnlikeError(InputError):
    """Checkpoints that cannot be read side by side, such as those of different vocabularies."""


@dataclass(frozen=True)
class _Tensor:
    """One tensor in base and all models, which are called as fastmerge would call them."""

    group: TensorGroup
    subject: Subject
    base: Tensor
    models: list[Tensor]
    labels: list[str]

    @classmethod
    def of(cls, group: TensorGroup) -> _Tensor:
        base = group.base.tensor
        labels = labels_of([str(entry.id) for entry in (group.base, *group.non_base)])
        models = [entry.tensor for entry in group.non_base]
        names = [labels[str(entry.id)] for entry in group.non_base]
        return cls(group, Subject(group.metadata.name or "", tuple(base.shape)), base, models, names)

    def index(self, task: str) -> int:
        """Which of the models a task is."""
        for names in ([str(entry.id) for entry in self.group.non_base], self.labels):
            if task in names:
                return names.index(task)
        raise InputError(f"task: there is no model {task!r}{nearest(task, self.labels)}; there are {self.labels}")

    def statistics(self, declared: Method, *, whole: bool) -> list[Statistics]:
        """What the method has to know of the whole model; `whole`: of its last pass, too."""
        count = len(declared.passes(self.labels)) - (0 if whole else 1)
        if not count:
            return []
        entries = (self.group.base, *self.group.non_base)
        folders = tuple(str(LoaderCache().get(entry.id).index.base_path) for entry in entries)
        return _statistics(declared, folders, tuple(self.labels), count)

    def merged(self, declared: Method, earlier: Sequence[Statistics]) -> Tensor:
        """The merged tensor, in the dtype of the inputs."""
        written, _ = self._run(declared, earlier)
        if "merged" in written:
            return written["merged"].view(self.base.shape)
        return ops.combine(None, [self.base.reshape(-1), written["unified"]], dtype=self.base.dtype).merged.view(
            self.base.shape
        )

    def of_task(self, declared: Method, k: int) -> Tensor:
        """The tensor in one task's model."""
        statistics = self.statistics(declared, whole=True)
        written, work = self._run(declared, statistics[:-1])
        found = declared.results(statistics)
        if "unified" in written:
            flat = self.base.reshape(-1)
            return ops.modulate(flat, written["unified"], written["masks"][k], found["rescalers"][k]).view(
                self.base.shape
            )
        merged = written["merged"].view(self.base.shape)
        for share in work.shares:
            merged = with_expert(merged, stored_expert(share.experts[k], self.base), found["scales"][k])
        return merged

    def _run(self, declared: Method, earlier: Sequence[Statistics]) -> tuple[Mapping[Written, Tensor], TensorPass]:
        """The method's last pass over the tensor."""
        problems = declared.problems(self.labels)
        if problems:
            raise InputError(problems)
        one = declared.passes_on(self.subject, self.labels)[-1]
        work = TensorPass.of(self.subject, len(self.models), [one], [earlier], Kept())
        written = run_tensor(work, self.base, self.models, self.base)
        if not work.acceptable([declared.nonfinite == "allow"]):
            raise ValueError(f"tensor {self.subject.name!r}: NaN or infinity in base, a model, or the result")
        return written, work


@functools.lru_cache(maxsize=4)
def _statistics(declared: Method, folders: tuple[str, ...], labels: tuple[str, ...], count: int) -> list[Statistics]:
    """Those of the first `count` passes of a method over whole checkpoints, base first."""
    models = list(zip(labels, map(Path, folders[1:]), strict=True))
    try:
        prepared = plan(declared, Path(folders[0]), models)
    except InputError as error:
        raise _UnlikeError(error.problems) from None
    return gather_statistics(prepared, count)


def _numeric(default: Any) -> bool:
    return not isinstance(default, str)


def main() -> None:
    """mergekit-yaml, with fastmerge's methods."""
    from mergekit.scripts.run_yaml import main as command

    take_over = "--take-over" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--take-over"]
    register(take_over=take_over)
    command()


if __name__ == "__main__":
    main()
