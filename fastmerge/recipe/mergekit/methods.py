"""mergekit's methods and parameters in fastmerge's terms.

Every other method of fastmerge stands in the same syntax, under its own name and with its own parameters: those of
single models beside the models, in the singular.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, Literal

from ... import methods
from ...errors import InputError, nearest
from ...methods._declaration import Method
from ..parameters import singular, value_faults
from .settings import Parse, flag, number, optional_number, whole

Scope = Literal["shared", "input", "non_base"]
NEEDED, ABSENT = object(), object()
Given = Mapping[str, Any]
# What fastmerge adds to mergekit's parameters, of methods that have it.
EXTENSIONS = ("seed", "nonfinite")
UNKNOWN_HERE = {
    "ram": "it is not one of fastmerge's methods yet",
    "ramplus_tl": "it is not one of fastmerge's methods yet",
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the merge ("shared"), of every model, or of every model but base."""

    name: str
    parse: Parse
    scope: Scope = "shared"
    default: Any = NEEDED


@dataclass(frozen=True, slots=True)
class MergekitMethod:
    """`ours` is the method of fastmerge that does it, and `translate` gives that its parameters, from the shared ones
    and those of each model. `base`: it is needed, may be there, or is a model like others ("ignored"). `count`: the
    least and the largest number of models, base not counted where it is needed or may be there."""

    name: str
    ours: str
    base: Literal["required", "optional", "ignored"]
    parameters: tuple[Parameter, ...]
    translate: Callable[[Given, Sequence[Given]], dict[str, Any]]
    count: tuple[int, int] = (1, 64)

    @property
    def shared(self) -> list[Parameter]:
        return [p for p in self.parameters if p.scope == "shared"]

    @property
    def own(self) -> list[Parameter]:
        return [p for p in self.parameters if p.scope != "shared"]

    @property
    def declared(self) -> type[Method]:
        return methods.get(self.ours)


def find(name: str) -> MergekitMethod:
    """The method of that name, mergekit's or else fastmerge's. InputError with the nearest name for an unknown one."""
    known = name.replace("-", "_")
    if known in METHODS:
        return _extended(METHODS[known])
    if known in UNKNOWN_HERE:
        raise InputError(f"merge_method: {name!r}: {UNKNOWN_HERE[known]}")
    if known in methods.names():
        return _extended(_own_method(known))
    every = sorted({*METHODS, *methods.names()})
    raise InputError(f"merge_method: unknown method {name!r}{nearest(known, every)}; there are {', '.join(every)}")


def _extended(method: MergekitMethod) -> MergekitMethod:
    """The method with what fastmerge adds to its parameters."""
    names = {p.name for p in method.parameters}
    more = [name for name in EXTENSIONS if name in method.declared.model_fields and name not in names]
    parameters = tuple(Parameter(name, _checked(method.declared, name), default=ABSENT) for name in more)

    def translate(shared: Given, own: Sequence[Given]) -> dict[str, Any]:
        return method.translate(shared, own) | {name: shared[name] for name in more if name in shared}

    return MergekitMethod(
        method.name, method.ours, method.base, method.parameters + parameters, translate, method.count
    )


def _own_method(name: str) -> MergekitMethod:
    """A method that mergekit does not have."""
    declared = methods.get(name)
    by_model = singular(declared)
    parameters = [Parameter(field, _checked(declared, field), default=ABSENT) for field in declared.model_fields]
    parameters += [
        Parameter(own, _checked(declared, field, single=True), "non_base", ABSENT) for own, field in by_model.items()
    ]

    def translate(given: Given, own: Sequence[Given]) -> dict[str, Any]:
        found = dict(given)
        for single, field in by_model.items():
            default = declared.model_fields[field].default
            if any(single in each for each in own):
                found[field] = [each.get(single, 1.0 if default is None else default) for each in own]
        return found

    return MergekitMethod(name, name, "required" if declared.uses_base else "ignored", tuple(parameters), translate)


def _checked(declared: type[Method], field: str, *, single: bool = False) -> Parse:
    """A parameter of fastmerge's own, checked as in its recipes."""

    def parse(value: Any) -> Any:
        for fault in value_faults(declared, field, value, (field,), single=single):
            raise ValueError(fault.text.partition("; ")[2] or fault.text)
        return value

    return parse


# The family of task arithmetic


def _family(given: Given, own: Sequence[Given], *, votes: bool) -> dict[str, Any]:
    weights, scale, normalize = [each["weight"] for each in own], given["lambda"], given["normalize"]
    if votes:
        how = {"vote": "weighted", "merge": "weighted_mean" if normalize else "sum"}
        return {"weights": weights, "scale": scale, **how}
    return {"weights": weights, "scale": scale, "normalize": normalize}


def _densities(own: Sequence[Given]) -> list[float]:
    """mergekit takes what is out of range for nothing, or for all."""
    return [min(1.0, max(0.0, each["density"])) for each in own]


def _arithmetic(given: Given, own: Sequence[Given]) -> dict[str, Any]:
    return _family(given, own, votes=False)


def _trimmed(given: Given, own: Sequence[Given]) -> dict[str, Any]:
    rescale = "l1" if given["rescale"] else "none"
    return _family(given, own, votes=True) | {"scope": "tensor", "density": _densities(own), "rescale": rescale}


def _random(given: Given, own: Sequence[Given], *, votes: bool) -> dict[str, Any]:
    rescale = "l1" if given["rescale"] else "none"
    return _family(given, own, votes=votes) | {"density": _densities(own), "rescale": rescale}


def _ranked(given: Given, own: Sequence[Given], *, votes: bool) -> dict[str, Any]:
    densities = _densities(own)
    # Where all or nothing is kept, there is nothing for epsilon to change.
    epsilons = [each["epsilon"] if 0 < d < 1 else 0.0 for each, d in zip(own, densities, strict=True)]
    return _random(given, own, votes=votes) | {"epsilon": epsilons}


def _crumbs(given: Given, own: Sequence[Given], *, votes: bool) -> dict[str, Any]:
    densities = _densities(own)
    # density has precedence: of the largest, no more are left out than it leaves.
    gammas = [_at_most(each["gamma"], d) for each, d in zip(own, densities, strict=True)]
    rescale = "l1" if given["rescale"] else "none"
    return _family(given, own, votes=votes) | {"density": densities, "gamma": gammas, "rescale": rescale}


def _at_most(gamma: float, density: float) -> float:
    return min(gamma, float(1 - Fraction(repr(density))))


def _method(
    name: str,
    translate: Callable[[Given, Sequence[Given]], dict[str, Any]],
    *more: Parameter,
    normalize: bool = False,
    rescale: bool = False,
) -> MergekitMethod:
    parameters = (
        Parameter("int8_mask", flag, default=False),
        Parameter("normalize", flag, default=normalize),
        Parameter("rescale", flag, default=rescale),
        Parameter("lambda", number, default=1.0),
        Parameter("weight", number, "non_base"),
        Parameter("density", number, "non_base", 1.0),
        *more,
    )
    return MergekitMethod(name, name, "required", parameters, translate)


GAMMA = Parameter("gamma", number, "non_base", 0.01)
EPSILON = Parameter("epsilon", number, "non_base", 0.15)
FAMILY = (
    _method("task_arithmetic", _arithmetic),
    _method("ties", _trimmed, normalize=True),
    _method("dare_linear", partial(_random, votes=False), rescale=True),
    _method("dare_ties", partial(_random, votes=True), rescale=True),
    _method("della_linear", partial(_ranked, votes=False), EPSILON, rescale=True),
    _method("della", partial(_ranked, votes=True), EPSILON, normalize=True, rescale=True),
    _method("breadcrumbs", partial(_crumbs, votes=False), GAMMA),
    _method("breadcrumbs_ties", partial(_crumbs, votes=True), GAMMA),
)


# Others


def _as_they_are(given: Given, _: Sequence[Given]) -> dict[str, Any]:
    """The shared parameters alone, under their own names."""
    return dict(given)


def _weighted(given: Given, own: Sequence[Given]) -> dict[str, Any]:
    return {"weights": [each["weight"] for each in own], **given}


def _selecting(given: Given, _: Sequence[Given]) -> dict[str, Any]:
    return {"select_topk": min(1.0, max(0.0, given["select_topk"]))}


def _passthrough(_: Given, own: Sequence[Given]) -> dict[str, Any]:
    (scale,) = (each["scale"] for each in own)
    return {"scale": 1.0 if scale is None else scale}


OTHERS = (
    MergekitMethod(
        "linear",
        "linear",
        "ignored",
        (Parameter("weight", number, "input"), Parameter("normalize", flag, default=True)),
        _weighted,
    ),
    MergekitMethod("slerp", "slerp", "required", (Parameter("t", number),), _as_they_are, (1, 1)),
    MergekitMethod(
        "nuslerp",
        "nuslerp",
        "optional",
        (
            Parameter("weight", number, "non_base"),
            Parameter("nuslerp_flatten", flag, default=True),
            Parameter("nuslerp_row_wise", flag, default=False),
        ),
        _weighted,
        (2, 2),
    ),
    MergekitMethod(
        "multislerp",
        "multislerp",
        "optional",
        (
            Parameter("weight", number, "non_base"),
            Parameter("normalize_weights", flag, default=True),
            Parameter("eps", number, default=1e-8),
        ),
        _weighted,
    ),
    MergekitMethod(
        "karcher",
        "karcher",
        "ignored",
        (Parameter("max_iter", whole, default=10), Parameter("tol", number, default=1e-5)),
        _as_they_are,
    ),
    MergekitMethod(
        "model_stock",
        "model_stock",
        "required",
        (Parameter("filter_wise", flag, default=False),),
        _as_they_are,
        (2, 64),
    ),
    MergekitMethod(
        "sce",
        "sce",
        "required",
        (Parameter("int8_mask", flag, default=False), Parameter("select_topk", number, default=1.0)),
        _selecting,
    ),
    MergekitMethod("nearswap", "nearswap", "required", (Parameter("t", number),), _as_they_are, (1, 1)),
    MergekitMethod("arcee_fusion", "arcee_fusion", "required", (), _as_they_are, (1, 1)),
    MergekitMethod(
        "passthrough",
        "passthrough",
        "ignored",
        (Parameter("scale", optional_number, "input", None),),
        _passthrough,
        (1, 1),
    ),
)

METHODS = {method.name: method for method in (*FAMILY, *OTHERS)}
