"""The parameters of every tensor, from what a configuration says of it, nearest first."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ...errors import InputError, nearest
from ..parameters import Override
from .config import MergekitConfig, Settings
from .methods import ABSENT, NEEDED, MergekitMethod, Parameter
from .settings import NOTHING, evaluate, setting_problems
from .weave import Place

TASKS = ("emr", "free")  # of which the binding inside mergekit gives one task's model
Problems = dict[str, list[str]]  # each with the tensors that have it, where these are to be named


def scope_problems(config: MergekitConfig, method: MergekitMethod) -> Iterator[str]:
    """What is wrong with parameters wherever they are given: mergekit ignores what it does not know."""
    parameters = {p.name: p for p in method.parameters}
    for where, settings, of_model in config.scopes():
        for name, setting in settings.items():
            parameter = parameters.get(name)
            if name == "task" and method.ours in TASKS and not of_model:
                yield f"{where}.task: leave it out; `fastmerge task MERGED {setting}` makes a task's model of the merge"
            elif parameter is None:
                known = [p.name for p in parameters.values() if not of_model or p.scope != "shared"]
                there = f"it has {', '.join(known)}" if known else "it has none here"
                yield f"{where}.{name}: {method.name} has no parameter {name!r}{nearest(name, known)}; {there}"
            elif of_model and parameter.scope == "shared":
                yield f"{where}.{name}: is of the merge, not of a model; put it in parameters"
            else:
                yield from setting_problems(setting, parameter.parse, f"{where}.{name}")


def parameters_of(
    method: MergekitMethod, labels: Sequence[str], places: Mapping[str, Place], tensors: Iterable[str]
) -> tuple[dict[str, Any], list[Override]]:
    """The parameters that most of these tensors have, and those of the others. `labels` are the models'."""
    problems: Problems = {}
    values = {name: _values(method, places[name], name, problems) for name in tensors}
    if problems:
        raise InputError(f"{problem}{_first_of(names)}" for problem, names in problems.items())
    declared = method.declared
    for key in dict.fromkeys(key for own in values.values() for key in own):
        default = declared.model_fields[key].default  # where a filter leaves out some tensors
        for own in values.values():
            said = own.get(key, default)
            by_model = key in declared.by_model and isinstance(said, list)
            own[key] = dict(zip(labels, said, strict=True)) if by_model else said
    return _grouped(values)


def _first_of(names: Sequence[str]) -> str:
    """The first name, and how many more there are."""
    own = list(dict.fromkeys(names))
    return "" if not own else f" {own[0]!r}" + (f" and {len(own) - 1} more" if len(own) > 1 else "")


def _grouped(values: Mapping[str, dict[str, Any]]) -> tuple[dict[str, Any], list[Override]]:
    """The parameters that most tensors have, and what others, by their names, have otherwise."""
    groups: dict[str, list[str]] = {}
    for name, own in values.items():
        groups.setdefault(json.dumps(own, sort_keys=True), []).append(name)
    most, *others = sorted(groups.values(), key=len, reverse=True) or [[]]
    common = values[most[0]] if most else {}
    return common, [
        (
            [glob.escape(name) for name in names],
            {key: value for key, value in values[names[0]].items() if common[key] != value},
        )
        for names in others
    ]


def _values(method: MergekitMethod, place: Place, tensor: str, problems: Problems) -> dict[str, Any]:
    """The parameters of one tensor, in fastmerge's terms."""
    shared = _resolved(method.shared, place.stretch.settings, tensor, place.t, "", problems)
    own = []
    for strand, name in zip(place.stretch.strands, place.names, strict=True):
        scopes = (strand.settings, *place.stretch.settings)
        own.append(_resolved(method.own, scopes, name, place.t, f" of {strand.model}", problems))
    if problems:
        return {}
    translated = method.translate(shared, own)
    if method.base == "optional":
        translated["task_vectors"] = place.stretch.base is not None
    return translated


def _resolved(
    parameters: Sequence[Parameter],
    scopes: Sequence[Settings],
    tensor: str,
    t: float,
    of: str,
    problems: Problems,
) -> dict[str, Any]:
    found = {}
    for parameter in parameters:
        name, said = parameter.name, [own[parameter.name] for own in scopes if parameter.name in own]
        values = (evaluate(setting, tensor, t, parameter.parse) for setting in said)
        value = next((value for value in values if value is not NOTHING), parameter.default)
        if value is NEEDED:
            missing = f"parameter {name}{of} is needed"
            if said:
                problems.setdefault(f"{missing}; no filter of it holds for", []).append(tensor)
            else:
                problems.setdefault(f"{missing}; give it {'beside the model, or ' if of else ''}in parameters", [])
        elif value is not ABSENT:
            found[name] = value
    return found
