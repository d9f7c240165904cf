"""Samples in JSONL files of unknown origin: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..errors import InputError
from ..formats.safetensors import limited

T = TypeVar("T")


def read_jsonl(
    file: Path,
    form: str,
    sample: Callable[[dict[str, Any]], T | str],
    check: Callable[[list[tuple[str, T]]], list[str]] = lambda _: [],
) -> list[tuple[str, T]]:
    """What `sample` makes of each line that is not blank, with where it is ("line 3").

    `sample` returns a text where a line is wrong, which says how; `check` the problems of all that are right; `form`
    tells what was expected. Raises InputError with every problem, and where there is no sample.
    """
    try:
        lines = file.expanduser().read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    samples, malformed = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            found = _sample(line, sample)
            if isinstance(found, str):
                malformed.append(f"{file}: line {number}: {found}; {form}")
            else:
                samples.append((f"line {number}", found))
    problems = limited(malformed) + check(samples)
    if not samples and not malformed:
        problems.append(f"{file}: is empty; {form} on each line")
    if problems:
        raise InputError(problems)
    return samples


def _sample(line: bytes, sample: Callable[[dict[str, Any]], T | str]) -> T | str:
    try:
        content = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        return f"not valid JSON ({error})"
    return sample(content) if isinstance(content, dict) else "no JSON object"
