"""Do these checkpoints fit together? Every base tensor found in every model, or all that is wrong in one report."""

from __future__ import annotations

import glob
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from ..errors import InputError, nearest
from ..formats.checkpoint import Checkpoint
from ..formats.safetensors import FLOATS, TensorInfo, limited
from ..targets import matches, unmatched
from .tied import assumed, can_tie, is_alias, tied_groups, twin
from .vocabulary import Resized, Vocab, resized

if TYPE_CHECKING:
    from ..methods._declaration import Subject

Rename = Sequence[tuple[str, str]]  # (old prefix, new prefix)

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a layer, in a tensor's name
INTEGERS = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor to merge: where it lies in base and in each model (in the models' order).

    `copy`: an integer or bool tensor, copied after checking that all are equal. `aliases`: further names under which
    base stores the very same (tied) tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    base: TensorInfo | None
    models: tuple[TensorInfo, ...]
    copy: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def numel(self) -> int:
        return (self.base or self.models[0]).numel

    @property
    def subject(self) -> Subject:
        """The tensor as methods know it."""
        from ..methods._declaration import Subject

        return Subject(self.name, self.shape)


@dataclass(frozen=True)
class Alignment:
    """Tensors to merge in base's file order, and those kept out: per model, and base's own.

    `vocabulary`: the checkpoints as their embeddings were resized, where they were.
    """

    tensors: tuple[TensorPlan, ...]
    task_specific: dict[str, tuple[TensorInfo, ...]]
    base_specific: tuple[TensorInfo, ...]
    notes: tuple[str, ...]
    vocabulary: Resized | None = None

    @cached_property
    def merged(self) -> tuple[TensorPlan, ...]:
        """The tensors that are merged, and not copied."""
        return tuple(tensor for tensor in self.tensors if not tensor.copy)

    @cached_property
    def wide(self) -> bool:
        """Whether some tensor is merged in float64."""
        return any("F64" in (t.dtype, *(info.dtype for info in t.models)) for t in self.tensors)

    @property
    def tied(self) -> dict[str, str]:
        """Further names of tensors, each with the one that it is merged by."""
        return {alias: tensor.name for tensor in self.tensors for alias in tensor.aliases}


def align(
    base: Checkpoint | None,
    models: Sequence[Checkpoint],
    *,
    task_specific: Sequence[str] = (),
    rename: Mapping[str, Rename] | None = None,
    vocab: Vocab | None = None,
) -> Alignment:
    """Match the tensors of all models with base's (the first model's, without a base).

    task_specific: patterns (`classifier.*`) of tensors that are not merged; rename: per model label, prefixes to
    replace before matching; vocab: what becomes of embeddings with different numbers of rows (vocabulary.py), None
    where that cannot be chosen. Raises InputError with the problems of all models.
    """
    problems: list[str] = []
    models = [_renamed(model, (rename or {}).get(model.label, ()), problems) for model in models]
    vocabulary = resized(vocab or "error", base, models)
    base, models = vocabulary.base, vocabulary.models
    lead = base or models[0]
    specific = [name for name in lead.tensors if matches(name, task_specific)]
    names = [name for name in lead.tensors if not matches(name, task_specific)]
    if specific and not names:
        problems.append(f"--task-specific matches every tensor of {lead.label}: nothing is left to merge")
    groups = tied_groups(lead, names, models)
    notes = [note for c in ([base] if base else []) + models for note in c.notes] + [*vocabulary.notes]
    notes += assumed(lead, groups, models)
    every = {name for checkpoint in (lead, *models) for name in checkpoint.tensors}
    problems += [f"--task-specific {p!r} matches no tensor of any model" for p in unmatched(task_specific, every)]
    found: list[dict[str, TensorInfo]] = []
    kept: dict[str, tuple[TensorInfo, ...]] = {}
    for model in models:
        own, model_problems, model_notes = _match(lead, model, groups, task_specific, choice=vocab is not None)
        found.append(own)
        problems += model_problems
        notes += model_notes
        kept[model.label] = tuple(t for t in model.tensors.values() if matches(t.name, task_specific))
    problems += _dtype_problems(lead, models, groups, found)
    if problems:
        raise InputError(problems)
    plans = []
    for name, aliases in groups.items():
        info = lead.tensors[name]
        stored = tuple(own[name] for own in found)
        copy = info.dtype in INTEGERS
        plans.append(TensorPlan(name, info.shape, info.dtype, info if base else None, stored, copy, aliases))
    own_tensors = tuple(base.tensors[name] for name in specific) if base else ()
    return Alignment(tuple(plans), kept, own_tensors, tuple(notes), vocabulary if vocabulary.rows else None)


def _renamed(model: Checkpoint, rename: Rename, problems: list[str]) -> Checkpoint:
    """The model under its new names; a renaming without effect, and two tensors of one name, are problems."""
    if not rename:
        return model
    tensors: dict[str, TensorInfo] = {}
    used = set()
    for info in model.tensors.values():
        old, new = next((pair for pair in rename if info.name.startswith(pair[0])), ("", ""))
        used.add((old, new))
        name = new + info.name[len(old) :]
        if name in tensors:
            problems.append(f"{model.label}: --rename gives {name!r} to two tensors; choose another prefix")
        tensors[name] = replace(info, name=name)
    problems += [
        f"--rename {model.label}:{old}={new}: no tensor of {model.label} begins with {old!r}"
        for old, new in rename
        if (old, new) not in used
    ]
    return replace(model, tensors=tensors)


def _match(
    lead: Checkpoint,
    model: Checkpoint,
    groups: Mapping[str, tuple[str, ...]],
    task_specific: Sequence[str],
    *,
    choice: bool,
) -> tuple[dict[str, TensorInfo], list[str], list[str]]:
    """The model's tensor for every name to merge, what is wrong, and notes; `choice`: there is --vocab."""
    own, missing, shapes = _stored(lead, model, groups)
    known = set(groups).union(*groups.values())
    extra = [name for name in model.tensors if name not in known and not matches(name, task_specific)]
    prefixed = _prefix_problem(lead, model, missing, extra, [name for name in model.tensors if name in known])
    if prefixed is not None:
        return own, [prefixed], []

    twins = {name: info for name in missing if (info := twin(lead, model, name)) is not None}
    own |= twins
    missing = [name for name in missing if name not in twins]
    used = {info.name for info in own.values()}
    extra = [name for name in extra if name not in used]
    aliases = [name for name in extra if is_alias(name, model, own)]
    extra = [name for name in extra if name not in aliases]
    notes = [f"{model.label}: {info.name} serves as {name}, which it is tied to" for name, info in twins.items()]
    notes += [f"{model.label}: ignored {n}, tied to the embeddings, which {lead.label} stores once" for n in aliases]

    wrong = {*missing, *shapes, *extra}

    def alone(name: str) -> str:
        pattern = shlex.quote(_pattern(name, wrong, [*lead.tensors, *model.tensors]))
        return f"if it belongs to the task alone, pass --task-specific {pattern}"

    def lacks(name: str) -> str:
        return f"{model.label}: tensor {name!r} of {lead.label} is missing{nearest(name, extra) or '; ' + alone(name)}"

    problems = limited(missing, lacks)
    problems += limited(
        shapes, lambda name: _shape_problem(lead, model, name, groups[name], alone(name), choice=choice)
    )
    problems += limited(extra, lambda name: f"{model.label}: tensor {name!r} is not in {lead.label}; {alone(name)}")
    return own, problems, notes


def _stored(
    lead: Checkpoint, model: Checkpoint, groups: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, TensorInfo], list[str], list[str]]:
    """The model's tensor for each name to merge, the names that it does not store, and those of another shape."""
    own: dict[str, TensorInfo] = {}
    missing: list[str] = []
    shapes: list[str] = []
    for name, aliases in groups.items():
        stored = next((model.tensors[n] for n in (name, *aliases) if n in model.tensors), None)
        if stored is None:
            missing.append(name)
        elif stored.shape != lead.tensors[name].shape:
            shapes.append(name)
        else:
            own[name] = stored
    return own, missing, shapes


def _pattern(name: str, wrong: set[str], names: Sequence[str]) -> str:
    """The first of these that matches nothing but what is wrong: the tensor's module (`classifier.*`) or the tensor, of
    every layer, else of this one; the tensor alone."""
    module, tensor = f"{glob.escape(name.rpartition('.')[0])}.*", glob.escape(name)
    every = [NUMBER.sub("*", form) for form in (module, tensor)] if NUMBER.search(name) else []
    forms = [*every, module] if "." in name else []
    return next((form for form in forms if all(n in wrong for n in names if matches(n, [form]))), tensor)


def uniform_prefix(missing: Sequence[str], extra: Sequence[str], right: Sequence[str]) -> tuple[str, str] | None:
    """(old, new) so that replacing that prefix gives exactly the missing names and touches none that is right."""
    if not missing or len(missing) > len(extra):
        return None
    wanted, first = set(missing), missing[0]
    for candidate in extra:
        if candidate.endswith(first):
            old, new = candidate[: -len(first)], ""
        elif first.endswith(candidate):
            old, new = "", first[: -len(candidate)]
        else:
            continue
        renamed = {new + name[len(old) :] for name in extra if name.startswith(old)}
        if wanted <= renamed and not any(name.startswith(old) for name in right):
            return old, new
    return None


def _findable(missing: Sequence[str], extra: Sequence[str]) -> list[str]:
    """The missing names that a name which is too many ends with, or that end with one, after a dot."""

    def ends(name: str) -> list[str]:
        return [name[i + 1 :] for i, letter in enumerate(name) if letter == "."]

    there, longer = set(extra), {end for name in extra for end in ends(name)}
    return [name for name in missing if name in longer or not there.isdisjoint(ends(name))]


def _prefix_problem(
    lead: Checkpoint, model: Checkpoint, missing: Sequence[str], extra: Sequence[str], right: Sequence[str]
) -> str | None:
    """The renaming of a prefix that finds all missing names, or most of them: one finding in the place of hundreds."""
    for names in (missing, _findable(missing, extra)):
        prefix = uniform_prefix(names, extra, right)
        if prefix is not None and 2 * len(names) > len(missing):
            old, new = prefix
            where = f"with the prefix {old!r}" if old else f"without the prefix {new!r}"
            part = "all" if len(names) == len(missing) else len(names)
            return (
                f"{model.label}: {len(missing)} tensors of {lead.label} are missing, {part} found {where}; "
                f"pass --rename {model.label}:{old}={new}"
            )
    return None


def _shape_problem(
    lead: Checkpoint, model: Checkpoint, name: str, aliases: tuple[str, ...], otherwise: str, *, choice: bool
) -> str:
    stored = next(model.tensors[n] for n in (name, *aliases) if n in model.tensors)
    shape, expected = list(stored.shape), list(lead.tensors[name].shape)
    text = f"{model.label}: tensor {stored.name!r} has shape {shape}, {lead.label} has {expected}"
    if len(shape) == 2 == len(expected) and shape[1] == expected[1] and can_tie(name):
        option = f"pass --vocab base (keep {lead.label}'s rows) or --vocab pad (keep all), or " if choice else ""
        back = f"resize it back (resize_token_embeddings({expected[0]})) and save it"
        return f"{text}: its vocabulary was resized; {option}{back}"
    return f"{text}; {otherwise}"


def _dtype_problems(
    lead: Checkpoint,
    models: Sequence[Checkpoint],
    groups: Mapping[str, tuple[str, ...]],
    found: Sequence[Mapping[str, TensorInfo]],
) -> list[str]:
    """Tensors to merge must be floats, tensors to copy of one dtype."""

    def problem(entry: tuple[str, str, TensorInfo]) -> str:
        label, name, info = entry
        expected = lead.tensors[name].dtype
        if expected in INTEGERS:
            return (
                f"{label}: tensor {info.name!r} is {info.dtype}, {lead.label} has {expected}; save both with one dtype"
            )
        known = ", ".join(sorted(FLOATS))
        return f"{label}: tensor {info.name!r} is {info.dtype}; {known} can be merged: convert it and save it"

    def wrong(name: str, info: TensorInfo) -> bool:
        expected = lead.tensors[name].dtype
        return info.dtype != expected if expected in INTEGERS else info.dtype not in FLOATS

    owners = {lead.label: {name: lead.tensors[name] for name in groups}}
    owners |= {model.label: dict(own) for model, own in zip(models, found, strict=True)}
    problems = []
    for label, own in owners.items():
        problems += limited([(label, name, info) for name, info in own.items() if wrong(name, info)], problem)
    return problems
