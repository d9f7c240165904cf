"""Samples to train and evaluate a router with, from files of unknown origin.

A JSONL file has a line {"text": …, "label": TASK} for each ("task" will do for "label"). A features file is safetensors
with `features`, a float [N, D], and the samples' tasks: either `labels`, I64 [N], places in the folder's list of tasks,
or, where its metadata has one as JSON under "tasks", in that; or names, in its metadata, JSON under "labels".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InputError, attempt, nearest
from ..formats.mapping import Inputs
from ..formats.safetensors import FLOATS, Header, limited, read_header
from .jsonl import read_jsonl

FORM = 'expected {"text": "…", "label": "TASK"}'


@dataclass(frozen=True, slots=True)
class Samples:
    """A task for each sample, and its text or its features (float32 [N, D])."""

    labels: list[str]
    texts: list[str] | None = None
    features: Tensor | None = None


def read_samples(
    tasks: Sequence[str],
    data: str | Path | None = None,
    features: str | Path | None = None,
    *,
    width: int | None = None,
) -> Samples:
    """Read a JSONL file, a file of features, or both: then labels are the JSONL file's.

    width: how many numbers a sample's features must be. Raises InputError with all problems of both files.
    """
    problems: list[str] = []
    lines = None if data is None else attempt(problems, lambda: _read_lines(Path(data), tasks))
    stored = (
        None if features is None else attempt(problems, lambda: _read_features(Path(features), tasks, data is None))
    )
    if data is None and features is None:
        problems.append("samples: pass a file of texts (--data), of features (--features), or both")
    if stored is not None:
        n, d = stored[0].shape
        if lines is not None and len(lines[0]) != n:
            problems.append(
                f"{features}: has features of {n} samples, {data} has {len(lines[0])}; they must be the same"
            )
        if width is not None and d != width:
            problems.append(f"{features}: its features have {d} numbers, the router was trained on {width}")
    if problems:
        raise InputError(problems)
    if lines is not None:
        return Samples(lines[1], lines[0], stored and stored[0])
    assert stored is not None
    return Samples(stored[1], None, stored[0])


def _read_lines(file: Path, tasks: Sequence[str]) -> tuple[list[str], list[str]]:
    """Texts and labels."""

    def unknown(found: list[tuple[str, tuple[str, str]]]) -> list[str]:
        return _unknown(file, [(where, label) for where, (_, label) in found], tasks)

    samples = read_jsonl(file, FORM, _sample, unknown)
    return [text for _, (text, _) in samples], [label for _, (_, label) in samples]


def _sample(content: dict[str, Any]) -> tuple[str, str] | str:
    """Text and label of a line, or what is wrong with it."""
    labels = [content[key] for key in ("label", "task") if key in content]
    if not isinstance(content.get("text"), str):
        return "has no text"
    if not labels or not isinstance(labels[0], str) or labels[0] != labels[-1]:
        return "has no single label that is a name"
    return content["text"], labels[0]


def _read_features(file: Path, tasks: Sequence[str], need_labels: bool) -> tuple[Tensor, list[str]]:
    """Features, and labels where they are needed."""
    header = read_header(file.expanduser())
    info, problems = header.tensors.get("features"), []
    if info is None or len(info.shape) != 2 or info.dtype not in FLOATS:
        held = ", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in header.tensors.values()) or "nothing"
        raise InputError(f"{file}: must hold `features`, floats [N, D]; it holds {held}")
    if not info.numel:
        problems.append(f"{file}: is empty: its features are {list(info.shape)}")
    tensors = Inputs([header])
    features = tensors.whole(info).float().clone()
    if not features.isfinite().all():
        problems.append(f"{file}: its features hold NaN or infinity")
    labels = attempt(problems, lambda: _labels(header, tensors, info.shape[0], tasks)) if need_labels else []
    tensors.check_unchanged()
    if problems or labels is None:
        raise InputError(problems)
    return features, labels


def _labels(header: Header, tensors: Inputs, n: int, tasks: Sequence[str]) -> list[str]:
    file, stored = header.file, header.tensors.get("labels")
    if stored is None:
        labels = _names(header, "labels")
        if labels is None:
            raise InputError(f"{file}: has no labels: add them, I64 [{n}] or names in its metadata, or pass --data")
        if len(labels) != n:
            raise InputError(f"{file}: has features of {n} samples and {len(labels)} labels")
    else:
        if stored.dtype != "I64" or stored.shape != (n,):
            raise InputError(f"{file}: labels must be I64 [{n}], they are {stored.dtype} {list(stored.shape)}")
        names = _names(header, "tasks") or list(tasks)
        places = tensors.whole(stored).tolist()
        wrong = [(i, place) for i, place in enumerate(places) if not 0 <= place < len(names)]
        if wrong:
            known = f"0 to {len(names) - 1}, for {', '.join(names)}"
            raise InputError(
                limited(wrong, lambda w: f"{file}: sample {w[0]}: label {w[1]} is of no task; expected {known}")
            )
        labels = [names[place] for place in places]
    problems = _unknown(file, [(f"sample {i}", label) for i, label in enumerate(labels)], tasks)
    if problems:
        raise InputError(problems)
    return labels


def _names(header: Header, key: str) -> list[str] | None:
    """A list of names in the metadata."""
    text = header.metadata.get(key)
    if text is None:
        return None
    try:
        names: Any = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{header.file}: {key} in its metadata must be a JSON list of names")
    return names


def _unknown(file: Path, labels: Sequence[tuple[str, str]], tasks: Sequence[str]) -> list[str]:
    """Labels of no task, each once, with where it is first."""
    where: dict[str, list[str]] = {}
    for place, label in labels:
        if label not in tasks:
            where.setdefault(label, []).append(place)

    def problem(entry: tuple[str, list[str]]) -> str:
        label, places = entry
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        return f"{file}: {places[0]}{more}: no task {label!r}{nearest(label, tasks)}; there are {', '.join(tasks)}"

    return limited(list(where.items()), problem)
