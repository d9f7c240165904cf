"""Reading recipes from YAML 1.2, with merge keys (`<<`), or JSON as plain data: no tags, no key twice."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError

SIZE_LIMIT = 1_000_000  # bytes
NODES = 200_000  # that may be in it, those of an alias each time it stands there
TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str")}
# YAML 1.2's core schema. PyYAML knows 1.1's, where `no` is false, 1e-3 a text, 1:30 a number and 2024-01-01 a date.
SCALARS: list[tuple[re.Pattern[str], Callable[[str], Any]]] = [
    (re.compile(r"|~|null|Null|NULL"), lambda _: None),
    (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    (re.compile(r"[-+]?[0-9]{1,300}"), int),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
    (re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), lambda text: float(text.replace(".", ""))),
]


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping that a file holds. Raises InputError with line and column of what is wrong."""
    try:
        if file.stat().st_size > SIZE_LIMIT:
            raise InputError(f"{file}: larger than {SIZE_LIMIT:,} bytes, which no recipe is")
        text = file.read_text(encoding="utf-8")
        # YAML does not read all escapes of JSON alike.
        content = (
            json.loads(text, object_pairs_hook=_unique)
            if file.suffix == ".json"
            else _data(_root(text), (), itertools.count())
        )
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: is no text in UTF-8, and no recipe") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{file}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except ValueError as error:  # an integer of thousands of digits
        raise InputError(f"{file}: {error}") from None
    except RecursionError:
        raise InputError(f"{file}: is nested too deeply for a recipe") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise InputError(f"{file}: {place}{error.problem}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{file}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: a recipe is a mapping, such as method: task_arithmetic")
    return content


def _root(text: str) -> Any:
    """The node of the only document; None of an empty file."""
    roots = list(itertools.islice(yaml.compose_all(text, yaml.BaseLoader), 2))
    if len(roots) > 1:
        raise _error("another document begins; a recipe is one: put each into a file of its own", roots[1])
    return roots[0] if roots else None


def _data(node: Any, above: tuple[Any, ...], met: Iterator[int]) -> Any:
    """The value of a node whose scalars are all texts. above: the nodes that hold it; met: counts all."""
    if node is None:  # an empty file
        return None
    if node in above:
        raise _error("holds itself", node)
    if next(met) >= NODES:
        raise _error(f"more than {NODES:,} values, aliases written out; no recipe has as many", node)
    if node.tag not in TAGS:
        raise _error(f"tags such as {node.tag} are not read", node)
    if isinstance(node, yaml.SequenceNode):
        return [_data(inner, (*above, node), met) for inner in node.value]
    if isinstance(node, yaml.ScalarNode):
        kinds = [convert for form, convert in SCALARS if form.fullmatch(node.value)] if node.style is None else []
        return kinds[0](node.value) if kinds else node.value
    content: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _error("a key must be a plain text", key)
        if key.value in content:  # keys are the text that stands there: a model may be called 1 or no
            raise _error(f"the key {key.value!r} is there twice", key)
        inner = _data(value, (*above, node), met)
        if key.value == "<<" and key.style is None:
            for mapping in inner if isinstance(inner, list) else [inner]:
                if not isinstance(mapping, dict):
                    raise _error("<< takes a mapping, or a list of mappings", value)
                for name, own in mapping.items():
                    merged.setdefault(name, own)  # the first counts
        else:
            content[key.value] = inner
    return merged | content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise yaml.YAMLError(f"the key {twice!r} is there twice")
    return content


def _error(problem: str, where: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)
