"""Values as mergekit writes them: for all tensors, for those whose names contain a text, and gradients over layers.

A setting is a value, a gradient [first, …, last], a condition {value: …, filter: TEXT}, or a list of conditions, of
which the first counts whose text is part of the tensor's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...errors import nearest

Parse = Callable[[Any], Any]  # raises ValueError
NOTHING = object()  # a setting that says nothing of a tensor
TRUE, FALSE = ("true", "yes", "on", "1", "1.0"), ("false", "no", "off", "0", "0.0")


def number(value: Any) -> float:
    """A finite number."""
    try:
        result = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        result = math.nan
    if not math.isfinite(result):
        raise ValueError("expected a number")
    return result


def whole(value: Any) -> int:
    """A whole number."""
    result = number(value)
    if not result.is_integer():
        raise ValueError("expected a whole number")
    return int(result)


def flag(value: Any) -> bool:
    """true or false, in all of YAML's words."""
    text = str(value).lower()
    if text not in (*TRUE, *FALSE):
        raise ValueError("expected true or false")
    return text in TRUE


def optional_number(value: Any) -> float | None:
    """A number, or null."""
    return None if value is None else number(value)


def evaluate(setting: Any, tensor: str, t: float, parse: Parse) -> Any:
    """What a setting says of a tensor at depth t, from 0 to 1; NOTHING where no condition holds."""
    if isinstance(setting, Mapping):
        setting = [setting]
    if isinstance(setting, list) and any(isinstance(part, Mapping) for part in setting):
        return next((evaluate(c.get("value"), tensor, t, parse) for c in setting if _holds(c, tensor)), NOTHING)
    return _gradient([parse(point) for point in setting], t) if isinstance(setting, list) else parse(setting)


def setting_problems(setting: Any, parse: Parse, where: str) -> Iterator[str]:
    """What is wrong with a setting, by path."""
    conditions = setting if isinstance(setting, list) else [setting]
    if not any(isinstance(part, Mapping) for part in conditions):
        yield from _value_problems(setting, parse, where)
        return
    for i, condition in enumerate(conditions):
        place = f"{where}[{i}]" if isinstance(setting, list) else where
        if not isinstance(condition, Mapping):
            yield f"{place} is {condition!r}; it should be a condition, such as {{filter: mlp, value: 0.5}}"
            continue
        for key in condition:
            if key not in ("value", "filter"):
                yield f"{place}: there is no {key!r} of a condition{nearest(str(key), ['value', 'filter'])}"
        if "value" not in condition:
            yield f"{place}.value is needed"
        elif isinstance(condition["value"], Mapping):
            yield f"{place}.value is {condition['value']!r}; conditions within conditions are not known"
        else:
            yield from _value_problems(condition["value"], parse, f"{place}.value")
        if not isinstance(condition.get("filter"), (str, type(None))):
            yield f"{place}.filter is {condition['filter']!r}; it should be part of a tensor's name"


def _value_problems(value: Any, parse: Parse, where: str) -> Iterator[str]:
    points = {f"{where}[{i}]": point for i, point in enumerate(value)} if isinstance(value, list) else {where: value}
    if not points:
        yield f"{where} is an empty list; give a value, or several for a gradient"
    for place, point in points.items():
        try:
            parse(point)
        except ValueError as error:  # noqa: PERF203 - the problems of all points are wanted
            yield f"{place} is {point!r}; {error}"


def _holds(condition: Any, tensor: str) -> bool:
    text = condition.get("filter")
    return text is None or text == "*" or text in tensor


def _gradient(points: list[Any], t: float) -> Any:
    """Linear between numbers; of other values the one that is reached."""
    if not all(isinstance(point, (int, float)) and not isinstance(point, bool) for point in points):
        return points[int(t * (len(points) - 1))]
    place = t * (len(points) - 1)
    first = int(place)
    rest = place - first
    return (1 - rest) * points[first] + rest * points[min(first + 1, len(points) - 1)]
