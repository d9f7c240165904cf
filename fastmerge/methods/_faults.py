"""pydantic's errors as one fault for each wrong value: where it lies in the input, and what was expected."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import nearest

if TYPE_CHECKING:
    from pydantic import ValidationError

Path = tuple[str | int, ...]
WORDS = (
    ("^(Input|List|Dictionary) should", "it should"),
    (r"valid dictionary( or instance of \w+)?", "mapping"),
    ("valid tuple", "list"),
)
WRONG_TYPE = re.compile(r"_(type|parsing)$")


@dataclass(frozen=True, slots=True)
class Fault:
    """A value at `path` of the input that is "unknown", "missing" or "wrong"; then `text` says how."""

    path: Path
    kind: str
    text: str = ""

    @property
    def place(self) -> str:
        """The path as users write it: density.layers[1]."""
        return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path).removeprefix(".")


def faults(error: ValidationError, content: Mapping[str, Any]) -> list[Fault]:
    """What is wrong with `content`. A value that fits none of several types is one fault, told by the nearest type."""
    details: dict[Path, list[Any]] = {}
    for detail in error.errors():
        path = _path(detail["loc"], content)
        if detail["type"] == "missing":
            path = (*path, detail["loc"][-1])
        details.setdefault(path, []).append(detail)
    inner = {path[:n] for path in details for n in range(len(path))}
    return [_fault(path, found) for path, found in details.items() if path not in inner]


def _holds(content: Any, part: str | int) -> bool:
    if isinstance(content, Mapping):
        return part in content
    return isinstance(content, (list, tuple)) and isinstance(part, int) and part < len(content)


def _path(loc: Sequence[str | int], content: Any) -> Path:
    """The part of pydantic's location that is in the input; the rest names the types it tried."""
    path: list[str | int] = []
    for part in loc:
        if _holds(content, part):
            content = content[part]
            path.append(part)
    return tuple(path)


def _fault(path: Path, details: list[Any]) -> Fault:
    kinds = {detail["type"] for detail in details}
    for kind, name in (("extra_forbidden", "unknown"), ("missing", "missing")):
        if kind in kinds:
            return Fault(path, name)
    telling = [d for d in details if not WRONG_TYPE.search(d["type"])] or details
    expected = dict.fromkeys(_expected(detail) for detail in telling)
    is_ = f"is {_shown(details[0]['input'])}; " if path else ""  # several values together are not shown
    return Fault(path, "wrong", is_ + ", or ".join(expected))


def _expected(detail: Any) -> str:
    message: str = detail["msg"].removeprefix("Value error, ")
    for theirs, ours in WORDS:
        message = re.sub(theirs, ours, message)
    if detail["type"] == "literal_error":
        message += nearest(str(detail["input"]), re.findall(r"'([^']*)'", detail["ctx"]["expected"]))
    return message


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
