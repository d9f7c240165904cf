"""Arguments in forms that a function's annotations do not have, said by their names, all at once."""

from __future__ import annotations

import functools
import operator
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter, Signature, signature, unwrap
from itertools import islice
from numbers import Integral
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, TypeVar, Union, get_args, get_origin

from .dense import not_dense
from .errors import FastmergeError, InputError

P = ParamSpec("P")
R = TypeVar("R")
LISTED = 5  # of a list's elements at most


def well_formed(function: Callable[P, R]) -> Callable[P, R]:
    """Lets a public function raise InputError for arguments of wrong forms before it does anything."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        problems = form_problems(function, args, kwargs)
        if problems:
            raise InputError(problems)
        return function(*args, **kwargs)

    return call


def explained(function: Callable[P, R]) -> Callable[P, R]:
    """The same of functions that take microseconds: forms are looked at once the call has failed."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except FastmergeError:
            raise
        except Exception as error:
            problems = form_problems(function, args, kwargs)
            if problems:
                raise InputError(f"{function.__name__}: {problem}" for problem in problems) from error
            raise

    return call


def form_problems(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
    """What is wrong with the arguments of a call; nothing where Python itself says that they are not the function's."""
    declared, hints = _declared(function, "torch" in sys.modules)
    try:
        given = declared.bind(*args, **kwargs).arguments
    except TypeError:
        return []
    found = [_faults(name, value, hints[name]) for name, value in given.items() if name in hints]
    return [fault.text for faults in found for fault in faults]


@functools.cache
def _declared(function: Callable[..., Any], _: bool) -> tuple[Signature, dict[str, Any]]:
    """A function's signature, and the hints of its parameters, which are others once torch is loaded."""
    declared, several = signature(function), (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return declared, {
        name: _meaning(parameter.annotation, function)
        for name, parameter in declared.parameters.items()
        if isinstance(parameter.annotation, str) and parameter.kind not in several
    }


class _Fault(NamedTuple):
    """A value that is not in the form of its hint."""

    where: str
    value: Any
    hint: Any
    why: str | None = None

    @property
    def text(self) -> str:
        if self.why is not None:
            return f"{self.where} {self.why}"
        advice = ""
        if hasattr(self.value, "state_dict") and not _faults("", {}, self.hint):
            advice = "; pass its state_dict()"
        elif isinstance(self.value, str) and not _faults("", [self.value], self.hint):
            advice = f"; write [{_kind(self.value)}]"
        elif (
            _is_iterable(self.value)
            and not isinstance(self.value, (Mapping, bytes, list))
            and not _faults("", [], self.hint)
        ):
            advice = "; make a list of it"
        return f"{self.where}: expected {_told(self.hint)}, not {_kind(self.value)}{advice}"


class _Torch:
    """In the place of torch where it is not loaded, and no value can be of its types."""

    dtype = device = Tensor = type("Unloaded", (), {})


def _meaning(annotation: str, function: Callable[..., Any]) -> Any:
    """An annotation's hint. The names of torch's may be imported for type checkers alone."""
    torch: Any = sys.modules.get("torch", _Torch)
    own: dict[str, Any] = getattr(unwrap(function), "__globals__", {})
    late = {name: value for name, value in (("torch", torch), ("Tensor", torch.Tensor)) if name not in own}
    return eval(annotation, own, late)


def _faults(where: str, value: Any, hint: Any) -> list[_Fault]:
    """What of a value is not in the form of a hint, as deep in it as can be told."""
    found: list[list[_Fault]] = []
    for option in _options(hint):
        faults = _faults_of(where, value, option)
        if not faults:
            return []
        found.append(faults)
    deeper = [faults for faults in found if all(fault.where != where or fault.why for fault in faults)]
    return deeper[0] if len(deeper) == 1 else [_Fault(where, value, hint)]


def _faults_of(where: str, value: Any, hint: Any) -> list[_Fault]:
    """The same of a hint that is no union."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind not in (Iterable, Mapping, Sequence, tuple):
        why = not_dense(value) if _is_tensor(hint) and isinstance(value, hint) else None
        return [_Fault(where, value, hint, why)] if why is not None or not _is(value, hint) else []
    if not _holds(value, kind, parts) or (kind is tuple and len(parts) != len(value)):
        return [_Fault(where, value, hint)]
    if isinstance(value, dict) and kind is Mapping:  # other mappings may read a value only when it is asked for
        keys = [fault for key in value for fault in _faults(f"{where}: key", key, parts[0])]
        # A state dict may hold more than tensors.
        own = () if _is_tensor(parts[1]) else value.items()
        return keys + [fault for key, inner in own for fault in _faults(f"{where}[{key!r}]", inner, parts[1])]
    if not isinstance(value, (list, tuple)):
        return []
    each = parts if kind is tuple else parts * len(value)
    wrong = (
        faults
        for i, (own, part) in enumerate(zip(value, each, strict=True))
        if not (part in (str, int) and type(own) is part)  # there may be a million labels
        and (faults := _faults(f"{where}[{i}]", own, part))
    )
    return [fault for faults in islice(wrong, LISTED) for fault in faults]


def _holds(value: Any, kind: Any, parts: tuple[Any, ...]) -> bool:
    """Whether a value is a container of a kind: text is none, and arrays are sequences of numbers, texts or arrays."""
    if isinstance(value, (str, bytes)) or (kind is not Mapping and isinstance(value, Mapping)):
        return False
    if kind is tuple:
        return isinstance(value, (list, tuple))
    if kind is Sequence and getattr(value, "shape", None):
        numbers = parts[0] in (int, float) or _is_tensor(parts[0])
        return numbers or (parts[0] is str and all(isinstance(own, str) for own in value))
    return _is_iterable(value) if kind is Iterable else isinstance(value, kind)


def _is_iterable(value: Any) -> bool:
    """Whether a value can be gone through: without __iter__ too, as data sets of torch's."""
    return isinstance(value, Iterable) or (hasattr(value, "__getitem__") and not isinstance(value, type))


def _is(value: Any, hint: Any) -> bool:
    """Whether a value is one of a hint that has no parts; true of hints that are not known."""
    if hint is bool:
        return value in (0, 1) if isinstance(value, Integral) else type(value).__name__ in ("bool", "bool_")  # NumPy's
    if hint is int:
        return _is_index(value)
    if hint is float:
        return hasattr(value, "__float__") and not isinstance(value, type) and not getattr(value, "shape", None)
    if hint is Path:
        return isinstance(value, os.PathLike)
    if get_origin(hint) is Literal:
        return isinstance(value, tuple(map(type, get_args(hint))))
    if get_origin(hint) is Callable:
        return callable(value)
    if hint is Any or not isinstance(hint, type) or getattr(hint, "_is_protocol", False):
        return True
    return isinstance(value, hint)


def _is_index(value: Any) -> bool:
    """Whether a value is a whole number, as tensors without dimensions may be."""
    if isinstance(value, (bool, type)) or getattr(value, "shape", None):
        return False
    try:
        operator.index(value)
    except (TypeError, RuntimeError):  # tensors of fractions; those on the meta device
        return False
    return True


def _is_tensor(hint: Any) -> bool:
    return isinstance(hint, type) and hint.__name__ == "Tensor"


def _options(hint: Any) -> list[Any]:
    """The hints of which a hint is a union; it alone where it is none."""
    if get_origin(hint) is Annotated:
        return _options(get_args(hint)[0])
    if get_origin(hint) not in (Union, UnionType):
        return [NoneType if hint is None else hint]
    return [inner for part in get_args(hint) for inner in _options(part)]


def _told(hint: Any) -> str:
    """A hint, to be read."""
    options = _options(hint)
    if len(options) > 1:
        return " or ".join(dict.fromkeys(map(_told, options)))
    kind, parts = get_origin(options[0]), get_args(options[0])
    if kind is Literal:
        return " or ".join(map(repr, parts))
    if kind is Callable:
        return "a function"
    if kind is Mapping:
        return f"{{{_told(parts[0])}: {_told(parts[1])}}}"
    if kind is tuple:
        return f"({', '.join(map(_told, parts))})"
    if kind in (Iterable, Sequence):
        return f"[{_told(parts[0])}, …]"
    words = {Any: "…", NoneType: "None", bool: "True or False", float: "a number", int: "a whole number"}
    return words.get(options[0]) or str(getattr(options[0], "__name__", options[0]))


def _kind(value: Any) -> str:
    """A value, to be read."""
    if value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) < 100):
        return repr(value)
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
