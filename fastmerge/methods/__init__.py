"""Merge methods: each a short declaration of its parameters and of which ops run in which pass.

A module of this folder called `foo` declares the method `foo`; modules with a leading underscore are shared parts.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from ..errors import InputError, nearest


def names() -> list[str]:
    """All methods, without importing them."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get(name: str) -> Any:
    """The class that declares the method; InputError with the nearest name for an unknown one."""
    name = name.replace("-", "_")
    if name not in names():
        raise InputError(f"unknown method {name!r}{nearest(name, names())}; there are {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    return next(v for v in vars(module).values() if getattr(v, "name", None) == name)


def build(name: str, params: Mapping[str, Any]) -> Any:
    """The method with its parameters, or one InputError with everything that is wrong with them."""
    from pydantic import ValidationError

    declaration = get(name)
    try:
        return declaration(**params)
    except ValidationError as error:
        known = list(declaration.model_fields)
        raise InputError([_problem(name, known, detail) for detail in error.errors()]) from None


def _problem(method: str, known: list[str], detail: Any) -> str:
    field = str(detail["loc"][0]) if detail["loc"] else "parameters"
    if detail["type"] == "extra_forbidden":
        return f"{method} has no parameter {field!r}{nearest(field, known)}; it has {', '.join(known)}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{method}: parameter {field!r} is {detail['input']!r}: {message}"
