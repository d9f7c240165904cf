"""The plan of a merge: everything that can be known, and everything that can be wrong, before a weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, attempt, nearest
from ..formats.checkpoint import Checkpoint
from ..formats.folder import encoded, set_dtype, to_json
from ..formats.models import Location, open_models
from ..formats.safetensors import LISTED
from ..forms import well_formed
from ..methods._declaration import Method
from .destination import output_folder
from .memory import portions_of
from .merge_plan import MergePlan
from .options import (
    DTYPE_NAMES,
    name_problems,
    option_problems,
    output_name_problems,
    parse_bytes,
    place_problems,
    spelled,
)
from .outputs import Output, plan_output
from .parameters import Override, Parameters, declare, pairs_of
from .preflight import Alignment, Rename, align
from .vocabulary import VOCABS, Vocab, files_beside, rows_of, set_rows

if TYPE_CHECKING:
    import torch


@well_formed
def plan(
    method: str | Method,
    base: Location | None = None,
    models: Mapping[str, Location] | Iterable[tuple[str, Location]] = (),
    out: str | Path | None = None,
    params: Mapping[str, Any] | None = None,
    *,
    tensors: Sequence[Override] = (),
    outputs: Mapping[str, Mapping[str, Any]] | None = None,
    task_specific: Sequence[str] = (),
    rename: Mapping[str, Rename] | None = None,
    vocab: Vocab = "error",
    dtype: str | torch.dtype | None = None,
    memory: str | int = "1GiB",
    device: str | torch.device = "auto",
    overwrite: bool = False,
    resume: bool = False,
    hashes: bool = False,
) -> MergePlan:
    """Check a merge of checkpoints on disk and lay out its result; reads headers only.

    Arguments are those of `fastmerge.merge`; base and models may be checkpoints that are open, too. Raises InputError
    with every problem found.
    """
    pairs = pairs_of(models, "models", "{name: folder, …}")
    dtype, device = spelled(dtype, device)
    names = [name for name, _ in pairs]
    problems = name_problems(names, rename or {}) + output_name_problems(outputs or {})
    declared, wrong = _declared(method, params or {}, outputs or {"": {}}, tensors, names)
    if base is None and any(one.method.uses_base for one in declared.values()):
        problems.append(f"{next(iter(declared.values())).method.name} needs a base model; pass --base")
    if vocab not in VOCABS:
        problems.append(f"unknown vocab {vocab!r}{nearest(vocab, VOCABS)}; there are {', '.join(VOCABS)}")
    problems += option_problems(dtype, memory, device)
    lead, opened = open_models(base, pairs, problems, fetch=False)
    complete = [checkpoint for checkpoint in opened if checkpoint is not None]
    alignment = None
    if complete and len(complete) == len(opened) and (base is None or lead is not None):
        alignment = attempt(
            problems, lambda: align(lead, complete, task_specific=task_specific, rename=rename, vocab=vocab)
        )
    for name, one in declared.items():
        wrong[name] += _settled(one, alignment, names)
    problems += _told_apart(wrong)
    checkpoints = tuple(checkpoint for checkpoint in (lead, *complete) if checkpoint)
    places = [path for checkpoint in checkpoints for path in checkpoint.places]
    placed = partial(place_problems, out, places, overwrite=overwrite, resume=resume, outputs=list(outputs or ()))
    if problems or alignment is None:
        raise InputError([*problems, *placed(0)])

    code, budget = DTYPE_NAMES[dtype] if dtype else None, parse_bytes(memory)
    first = lead or complete[0]
    subjects = [tensor.subject for tensor in alignment.merged]
    remarks = {name: one.remarks(subjects) for name, one in declared.items()}
    planned = tuple(plan_output(name, one, alignment, first, names, code) for name, one in declared.items())
    problems = _told_apart({name: own.problems for name, own in remarks.items()})
    problems += (uneven := _reading_problems(planned, names, alignment))
    problems += _vocabulary_problems(planned, alignment, lead)
    problems += _base_folder_problems(planned, lead)
    chunk, lanes = (0, 0) if uneven else portions_of(planned, alignment, names, budget, problems)
    total = sum(layout.total_bytes for output in planned for layout in output.all_layouts)
    problems += placed(total)
    if problems:
        raise InputError(problems)
    notes = _told_apart({name: own.notes for name, own in remarks.items()}) + _left_out(planned, alignment)
    return MergePlan(
        outputs=planned,
        base=lead,
        models=tuple(complete),
        sources={checkpoint.label: checkpoint.place for checkpoint in checkpoints},
        alignment=alignment,
        out=None if out is None else output_folder(out),
        overwrite=overwrite,
        resume=resume,
        hashes=hashes,
        task_specific=tuple(task_specific),
        rename=dict(rename or {}),
        dtype=code,
        chunk=chunk,
        lanes=lanes,
        memory=budget,
        device=device,
        notes=(*alignment.notes, *notes, *_without_config(first, checkpoints)),
        checkpoints=checkpoints,
        beside=_beside(alignment, first, dtype),
        vocab=vocab,
    )


def _declared(
    method: str | Method,
    params: Mapping[str, Any],
    outputs: Mapping[str, Mapping[str, Any]],
    tensors: Sequence[Override],
    names: Sequence[str],
) -> tuple[dict[str, Parameters], dict[str, list[str]]]:
    """By output its parameters, where these are sound, and what is wrong with them."""
    declared: dict[str, Parameters] = {}
    wrong: dict[str, list[str]] = {}
    for name, changes in outputs.items():
        wrong[name] = []
        built = attempt(wrong[name], partial(declare, method, params, changes, tensors, names, name))
        if built is not None:
            declared[name] = built
    return declared, wrong


def _settled(parameters: Parameters, alignment: Alignment | None, names: Sequence[str]) -> list[str]:
    """What is wrong with an output's parameters for the tensors; where these are not known, for so many models."""
    if alignment is not None:
        return parameters.settle([tensor.name for tensor in alignment.merged], alignment.tied)
    return parameters.method.problems(names) if names else []  # that there are none is said already


def _base_folder_problems(outputs: Sequence[Output], base: Checkpoint | None) -> list[str]:
    """Tasks are made from a base on disk."""
    if base is None or base.path.exists() or not any("unified" in output.layouts for output in outputs):
        return []
    return [
        f"base: tasks are made from a base on disk, and {base.place} is none; merge it into a folder first "
        "(fastmerge merge linear --model NAME=MODEL+ADAPTER)"
    ]


def _told_apart(wrong: Mapping[str, Sequence[str]]) -> list[str]:
    """What is wrong with outputs: with all of them once, else with the output's name."""
    common = set.intersection(*map(set, wrong.values()))
    named = {name: f"outputs.{name}" for name in wrong}
    return list(
        dict.fromkeys(
            text if text in common or text.startswith(named[name]) else f"{named[name]}: {text}"
            for name, texts in wrong.items()
            for text in texts
        )
    )


def _left_out(outputs: Sequence[Output], alignment: Alignment) -> list[str]:
    """A note of single tasks' tensors where outputs keep no tasks apart, and base has none in their place."""
    kept = {info.name for info in alignment.base_specific}
    lost = [f"{k}'s {t.name}" for k, own in alignment.task_specific.items() for t in own if t.name not in kept]
    if not lost or any(output.heads for output in outputs):
        return []
    more = f", … and {len(lost) - LISTED} more" if len(lost) > LISTED else ""
    return [f"{len(lost)} task-specific tensors are left out ({', '.join(lost[:LISTED])}{more})"]


def _vocabulary_problems(outputs: Sequence[Output], alignment: Alignment, base: Checkpoint | None) -> list[str]:
    """What is stored against base cannot have rows that base lacks."""
    found = alignment.vocabulary
    if found is None or base is None or found.rows == rows_of(base):
        return []
    return [
        f"{output.method.name}: task vectors are stored against base, which has fewer rows than vocab pad asks for; "
        "pass --vocab base"
        for output in outputs
        if "unified" in output.layouts
    ]


def _without_config(first: Checkpoint, checkpoints: Sequence[Checkpoint]) -> list[str]:
    """What the folder that configuration and tokenizer come from lacks, and another has."""
    other = next((one for one in checkpoints if one.config), None)
    if first.config or other is None:
        return []
    return [f"{first.label} has no config.json, so that the result has none; copy that of {other.label}, if it fits"]


def _beside(alignment: Alignment, lead: Checkpoint, dtype: str | None) -> dict[str, bytes | None]:
    """Configuration and tokenizer of a result whose vocabulary is not its lead's."""
    found = alignment.vocabulary
    if found is None or found.rows == rows_of(lead):
        return {}
    config = set_rows(lead.config, found.rows)
    content = encoded(to_json(set_dtype(config, dtype) if dtype else config))
    return files_beside(found, lead) | ({"config.json": content} if config else {})


def _reading_problems(outputs: Sequence[Output], names: Sequence[str], alignment: Alignment) -> list[str]:
    """All outputs come from the same readings."""
    counts = {output.name: len(output.method.passes(names, alignment.wide)) for output in outputs}
    if len(set(counts.values())) == 1:
        return []
    readings = ", ".join(f"{name} {count}" for name, count in counts.items())
    return [f"outputs need different numbers of readings ({readings}); merge them apart"]
