"""Merge methods: each a short declaration of its parameters and of which ops run in which pass.

A module of this folder called `foo` declares the method `foo`; modules with a leading underscore are shared parts.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import InputError, nearest

if TYPE_CHECKING:
    from ._declaration import Block, Method, Pass, Statistics, Subject
    from ._faults import Fault
    from ._modulators import TaskVectorMethod

__all__ = ["Block", "Method", "Pass", "Statistics", "Subject", "TaskVectorMethod", "build", "check", "get", "names"]


def __getattr__(name: str) -> Any:
    """What methods are declared with, loaded when first used: pydantic takes a while."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "_modulators" if name == "TaskVectorMethod" else "_declaration"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def names() -> list[str]:
    """All methods, without importing them."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get(name: str) -> type[Method]:
    """The class that declares the method; InputError with the nearest name for an unknown one."""
    name = name.replace("-", "_")
    if name not in names():
        raise InputError(f"unknown method {name!r}{nearest(name, names())}; there are {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    declared: type[Method] = next(v for v in vars(module).values() if getattr(v, "name", None) == name)
    return declared


def build(method: str | type[Method], params: Mapping[str, Any]) -> Method:
    """The method with its parameters, or one InputError with everything that is wrong with them."""
    declared = get(method) if isinstance(method, str) else method
    found = check(declared, params)
    if found:
        raise InputError([problem(declared, fault) for fault in found])
    return declared(**params)


def check(declared: type[Method], params: Mapping[str, Any]) -> list[Fault]:
    """What is wrong with the parameters of a method; a fault without a path is of several together."""
    from pydantic import ValidationError

    from ._faults import faults

    try:
        declared.model_validate(dict(params))
    except ValidationError as error:
        return faults(error, params)
    return []


def problem(declared: type[Method], fault: Fault, where: str = "") -> str:
    """A fault as users read it; `where` is what they call the place that the parameters were given in."""
    place = ".".join(part for part in (where, fault.place) if part)
    if fault.kind == "unknown":
        known, name = _known(declared, fault), str(fault.path[-1])
        of = declared.name if len(fault.path) == 1 else fault.path[0]
        text = f"{of} has no parameter {name!r}{nearest(name, known)}; it has {', '.join(known)}"
        return f"{place}: {text}" if where else text
    text = "is needed" if fault.kind == "missing" else fault.text
    if where:
        return f"{place} {text}"
    return f"{declared.name}: parameter {place} {text}" if place else f"{declared.name}: {text}"


def _known(declared: type[Method], fault: Fault) -> list[str]:
    """The parameters that there are beside an unknown one, which may be one of a filter's."""
    from ._filter import Filter

    return list((declared if len(fault.path) == 1 else Filter).model_fields)
