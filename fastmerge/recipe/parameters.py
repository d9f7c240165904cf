"""Which parameters hold for which tensor: the method's own, gradients over depth, and what patterns of names change."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any

from ..errors import InputError, nearest
from ..methods import build, check, get, problem
from ..methods._declaration import Method, Remarks, Subject
from ..methods._faults import Fault, Path
from .layers import at_depth, depths, has_gradient, is_gradient, wrong_gradient

WILD = re.compile(r"[*?\[]")
# One or several patterns of tensor names, and the parameters that they change.
Override = tuple[str | Sequence[str], Mapping[str, Any]]


@dataclass(slots=True)
class Parameters:
    """A method with the parameters of one output. `settings` are those said of the whole model, gradients and all;
    `method` has them as they are at depth 0. Call `settle` once the tensors are known, then `of`."""

    method: Method
    settings: Mapping[str, Any]
    overrides: tuple[tuple[tuple[str, ...], Mapping[str, Any]], ...]
    models: tuple[str, ...]
    _tensors: dict[str, Method] = field(default_factory=dict)

    def of(self, tensor: str) -> Method:
        """The method as it merges this tensor."""
        return self._tensors.get(tensor, self.method)

    def settle(self, tensors: Sequence[str], tied: Mapping[str, str]) -> list[str]:
        """Find the parameters of every tensor, and what is wrong with them; a pattern without a tensor is.

        tied: further names, each with that of its tensor.
        """
        problems = self.method.problems(self.models)
        gradients = any(map(has_gradient, (self.settings, *(values for _, values in self.overrides))))
        placed = depths(tensors) if gradients else {}
        if problems or not (self.overrides or gradients):
            return problems
        if gradients and not placed:
            problems.append("layers: no tensor's name has the number of a layer (layers.7.); give numbers alone")
        for i, (patterns, _) in enumerate(self.overrides):
            problems += [f"tensors[{i}]: {text}" for text in _unmatched(patterns, tensors, tied)]
        matches = [_matcher(patterns) for patterns, _ in self.overrides]
        known: dict[tuple[tuple[int, ...], Fraction], Method] = {}
        wrong: set[tuple[int, ...]] = set()  # one report for all depths
        for name in tensors:
            hits = tuple(i for i, match in enumerate(matches) if match(name))
            key = hits, placed.get(name, Fraction(0))
            if key not in known and hits not in wrong:
                known[key], found = self._built(*key)
                problems += [f"tensor {name!r}: {text}" for text in found]
                wrong |= {hits} if found else set()
            self._tensors[name] = known.get(key, self.method)
        return problems

    def remarks(self, subjects: Sequence[Subject]) -> Remarks:
        """What the method has to say of the tensors that it merges, once the parameters are settled."""
        return self.method.remarks([(subject, self.of(subject.name)) for subject in subjects])

    def record(self) -> dict[str, Any]:
        """The parameters as JSON, as a recipe would say them."""
        gradients = {name: value for name, value in self.settings.items() if has_gradient(value)}
        tensors = [{"match": list(patterns), "parameters": dict(values)} for patterns, values in self.overrides]
        return {"params": self.method.model_dump(mode="json") | gradients} | ({"tensors": tensors} if tensors else {})

    def _built(self, hits: Sequence[int], depth: Fraction) -> tuple[Method, list[str]]:
        """The method for tensors that these overrides match, and what is wrong with it."""
        settings = self.settings
        for i in hits:
            settings = changed(type(self.method), settings, self.overrides[i][1], self.models)
        try:
            method = build(type(self.method), at_depth(settings, depth))
        except InputError as error:
            return self.method, error.problems
        return method, method.problems(self.models)


def declare(
    method: str | Method,
    params: Mapping[str, Any],
    changes: Mapping[str, Any],
    overrides: Sequence[Override],
    models: Sequence[str],
    output: str = "",
) -> Parameters:
    """The parameters of one output, which changes some of `params`. Raises InputError with all that is wrong with them
    before tensors are known."""
    declared = get(method) if isinstance(method, str) else type(method)
    given = {} if isinstance(method, str) else method.model_dump(exclude_unset=True)
    given, changes = plain({**given, **params}), plain(changes)
    entries = pairs_of(overrides, "tensors", "[(pattern, {parameter: value}), …]")
    own = tuple(((p,) if isinstance(p, str) else tuple(p), plain(values)) for p, values in entries)
    problems = section_problems(declared, given)
    problems += section_problems(declared, changes, f"outputs.{output}", models)
    for i, (_, values) in enumerate(own):
        problems += section_problems(declared, values, f"tensors[{i}]", models)
    if problems:
        raise InputError(problems)
    settings = changed(declared, given, changes, models)
    whole = build(declared, at_depth(settings, Fraction(0)))
    problems += fixed_problems(whole, settings, some_tensors=False)
    for i, (_, values) in enumerate(own):
        problems += fixed_problems(whole, values, f"tensors[{i}]", some_tensors=True)
    if problems:
        raise InputError(problems)
    return Parameters(whole, settings, own, tuple(models))


def pairs_of(given: Any, what: str, form: str) -> list[tuple[Any, Any]]:
    """Pairs that a caller gave, as a mapping or one after the other. InputError with the form for what is neither."""
    whole = given.items() if isinstance(given, Mapping) else given
    pairs = list(whole) if isinstance(whole, Iterable) else [whole]
    if not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
        raise InputError(f"{what}: expected {form}")
    return [(first, second) for first, second in pairs]


def section_problems(
    declared: type[Method], values: Mapping[str, Any], where: str = "", models: Sequence[str] | None = None
) -> list[str]:
    """What is wrong with parameters given in one place, each by itself. models: their names, where a mapping by model
    need not name them all."""
    found = []
    for name, value in values.items():
        if name in declared.by_model and isinstance(value, (Mapping, list)) and not is_gradient(value):
            if isinstance(value, Mapping) and models is not None:
                unknown = [key for key in value if key not in models]
                found += [Fault((name, key), "wrong", f"is of no model{nearest(key, models)}") for key in unknown]
            for key, own in value.items() if isinstance(value, Mapping) else enumerate(value):
                found += value_faults(declared, name, own, (name, key), single=True)
        else:
            found += value_faults(declared, name, value, (name,))
    return [problem(declared, fault, where) for fault in found]


def value_faults(
    declared: type[Method], parameter: str, value: Any, path: Path, *, single: bool = False
) -> list[Fault]:
    """What is wrong with a value of a parameter, and with every point of a gradient; the faults call it by its path.
    `single`: it is one model's."""
    if single and (value is None or isinstance(value, (Mapping, list))) and not is_gradient(value):
        return [Fault(path, "wrong", f"is {value!r}; it should be one number")]
    if is_gradient(value) and parameter in declared.model_fields:
        text = wrong_gradient(value)
        if text:
            return [Fault((*path, "layers"), "wrong", text)]
        points = [(point, (*path, "layers", i)) for i, point in enumerate(value["layers"])]
        return [fault for point, place in points for fault in value_faults(declared, parameter, point, place)]
    # What is needed but given elsewhere, and how parameters go together, is looked at when all are known.
    found = [fault for fault in check(declared, {parameter: value}) if fault.path and fault.kind != "missing"]
    return [Fault((*path, *fault.path[1:]), fault.kind, fault.text) for fault in found]


def fixed_problems(method: Method, values: Mapping[str, Any], where: str = "", *, some_tensors: bool) -> list[str]:
    """Which of these parameters differ between tensors, by depth or because they are for some alone, but must not."""
    text = "holds for the whole model; it cannot differ between tensors"
    differing = [name for name in values if some_tensors or has_gradient(values[name])]
    fixed = [name for name in differing if name not in method.per_tensor]
    return [problem(type(method), Fault((name,), "wrong", text), where) for name in fixed]


def singular(declared: type[Method]) -> dict[str, str]:
    """What a model's own value is called, and the parameter that holds those of all: weight, of weights."""
    return {name.removesuffix("s"): name for name in declared.by_model}


def changed(
    declared: type[Method], settings: Mapping[str, Any], changes: Mapping[str, Any], models: Sequence[str]
) -> dict[str, Any]:
    """Settings after changes. A mapping by model's name changes those models alone."""
    result = dict(settings)
    for name, value in changes.items():
        if name in declared.by_model and isinstance(value, Mapping) and not is_gradient(value):
            before = result.get(name)
            if before is None or isinstance(before, str):  # a preset's, the default, or the command line's
                before = getattr(build(declared, at_depth(result, Fraction(0))), name)
            value = {**spread(before, models), **value}
        result[name] = value
    return result


def spread(value: Any, models: Sequence[str]) -> dict[str, Any]:
    """A per-model parameter by model, from a number for all, a list in order, or a mapping; None is 1 for all."""
    if isinstance(value, Mapping) and not is_gradient(value):
        return dict(value)
    if isinstance(value, (list, tuple)):
        return dict(zip(models, value, strict=False))
    return dict.fromkeys(models, 1.0 if value is None else value)


def plain(value: Any) -> Any:
    """A value made of what JSON knows, where it can be: a record of it is written after the merge."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Tells the tensors that a pattern matches; there may be as many patterns as tensors."""
    plain = {pattern for pattern in patterns if not WILD.search(pattern)}
    wild = [pattern for pattern in patterns if pattern not in plain]
    return lambda tensor: tensor in plain or any(fnmatchcase(tensor, pattern) for pattern in wild)


def _unmatched(patterns: Sequence[str], tensors: Sequence[str], tied: Mapping[str, str]) -> list[str]:
    known = set(tensors)
    unmatched = [p for p in patterns if p not in known and not any(fnmatchcase(name, p) for name in tensors)]
    names = dict.fromkeys(re.sub(r"\d+", "*", name) for name in tensors) if unmatched else ()
    aliases = {p: next((alias for alias in tied if fnmatchcase(alias, p)), None) for p in unmatched}
    return [
        f"{pattern!r} matches no tensor that is merged"
        + (f"; {alias!r} is tied to {tied[alias]!r}: name that" if alias else nearest(pattern, names))
        for pattern, alias in aliases.items()
    ]
