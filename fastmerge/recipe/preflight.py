"""Do these checkpoints fit together? Every base tensor found in every model, or all that is wrong in one report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from ..errors import InputError, nearest
from ..formats.checkpoint import Checkpoint
from ..formats.safetensors import FLOATS, TensorInfo

Rename = Sequence[tuple[str, str]]  # (old prefix, new prefix)

LISTED = 10  # problems of one kind that are spelled out
INTEGERS = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})
# Endings of names that share one tensor where a config ties the word embeddings; the first that base stores is merged.
TIED = (
    "embed_tokens.weight",
    "wte.weight",
    "shared.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "lm_head.weight",
    "embed_out.weight",
    "cls.predictions.decoder.weight",
)


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


@dataclass(frozen=True, slots=True)
class Alignment:
    """Tensors to merge in base's file order, and those kept out: per model, and base's own."""

    tensors: tuple[TensorPlan, ...]
    task_specific: dict[str, tuple[TensorInfo, ...]]
    base_specific: tuple[TensorInfo, ...]
    notes: tuple[str, ...]


def align(
    base: Checkpoint | None,
    models: Sequence[Checkpoint],
    *,
    task_specific: Sequence[str] = (),
    rename: Mapping[str, Rename] | None = None,
) -> Alignment:
    """Match the tensors of all models with base's (the first model's, without a base).

    task_specific: patterns (`classifier.*`) of tensors that are not merged; rename: per model label, prefixes to
    replace before matching. Raises InputError with the problems of all models.
    """
    models = [_renamed(model, (rename or {}).get(model.label, ())) for model in models]
    lead = base or models[0]
    specific = [name for name in lead.tensors if _matches(name, task_specific)]
    names = [name for name in lead.tensors if name not in specific]
    groups = _tied_groups(lead, names, models)
    problems: list[str] = []
    notes: list[str] = [note for c in ([base] if base else []) + models for note in c.notes]
    unused = [p for p in task_specific if not any(fnmatchcase(n, p) for c in (lead, *models) for n in c.tensors)]
    problems += [f"--task-specific {p!r} matches no tensor of any model" for p in unused]
    found: list[dict[str, TensorInfo]] = []
    kept: dict[str, tuple[TensorInfo, ...]] = {}
    for model in models:
        own, model_problems, model_notes = _match(lead, model, groups, task_specific)
        found.append(own)
        problems += model_problems
        notes += model_notes
        kept[model.label] = tuple(t for t in model.tensors.values() if _matches(t.name, task_specific))
    plans = []
    if not problems:
        for name, aliases in groups.items():
            info = lead.tensors[name]
            plan = TensorPlan(
                name,
                info.shape,
                info.dtype,
                info if base else None,
                tuple(own[name] for own in found),
                info.dtype in INTEGERS,
                aliases,
            )
            problems += _dtype_problems(plan, lead, models)
            plans.append(plan)
    if problems:
        raise InputError(problems)
    own_tensors = tuple(base.tensors[name] for name in specific) if base else ()
    return Alignment(tuple(plans), kept, own_tensors, tuple(notes))


def _renamed(model: Checkpoint, rename: Rename) -> Checkpoint:
    if not rename:
        return model
    tensors = {}
    for info in model.tensors.values():
        name = info.name
        for old, new in rename:
            if name.startswith(old):
                name = new + name[len(old) :]
                break
        tensors[name] = replace(info, name=name)
    return replace(model, tensors=tensors)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _tied_groups(lead: Checkpoint, names: Sequence[str], models: Sequence[Checkpoint]) -> dict[str, tuple[str, ...]]:
    """Each tensor to merge, with the names tied to it.

    Tied are the names of TIED with one shape, where the config says so, or says nothing and some checkpoint stores
    only part of them.
    """
    groups: dict[str, tuple[str, ...]] = {name: () for name in names}
    tied = sorted((name for name in names if _tie_rank(name) < len(TIED)), key=_tie_rank)
    tied = [name for name in tied if lead.tensors[name].shape == lead.tensors[tied[0]].shape]
    if len(tied) < 2 or not _ties(lead, tied, models):
        return groups
    source, *aliases = tied
    for alias in aliases:
        del groups[alias]
    groups[source] = tuple(aliases)
    return groups


def _tie_rank(name: str) -> int:
    return next((i for i, end in enumerate(TIED) if name == end or name.endswith("." + end)), len(TIED))


def _ties(lead: Checkpoint, tied: Sequence[str], models: Sequence[Checkpoint]) -> bool:
    said = lead.config.get("tie_word_embeddings", lead.config.get("text_config", {}).get("tie_word_embeddings"))
    if isinstance(said, bool):
        return said
    return any(0 < sum(name in model.tensors for name in tied) < len(tied) for model in models)


def _match(
    lead: Checkpoint, model: Checkpoint, groups: Mapping[str, tuple[str, ...]], task_specific: Sequence[str]
) -> tuple[dict[str, TensorInfo], list[str], list[str]]:
    """The model's tensor for every name to merge, what is wrong, and notes."""
    own: dict[str, TensorInfo] = {}
    missing, shapes, notes = [], [], []
    for name, aliases in groups.items():
        stored = [n for n in (name, *aliases) if n in model.tensors]
        if not stored and _tie_rank(name) < len(TIED):  # stored under another of the tied names
            stored = [n for n in model.tensors if _tie_rank(n) < len(TIED) and n not in lead.tensors]
        if not stored:
            missing.append(name)
        elif model.tensors[stored[0]].shape != lead.tensors[name].shape:
            shapes.append((name, model.tensors[stored[0]]))
        else:
            own[name] = model.tensors[stored[0]]
    used = {info.name for info in own.values()} | {info.name for _, info in shapes}
    known = set(groups) | {alias for aliases in groups.values() for alias in aliases} | used
    extra = [name for name in model.tensors if name not in known and not _matches(name, task_specific)]
    for name in [n for n in extra if _is_alias(n, model, own)]:
        extra.remove(name)
        notes.append(f"{model.label}: ignored {name}, tied to the embeddings, which {lead.label} stores once")
    prefix = _prefix(missing, extra)
    if prefix is not None:
        old, new = prefix
        return (
            own,
            [
                f"{model.label}: {len(missing)} tensors of {lead.label} are missing, all found under "
                f"{'the prefix ' + repr(old) if old else 'no prefix where ' + lead.label + ' has ' + repr(new)}; "
                f"pass --rename {model.label}:{old}={new}"
            ],
            notes,
        )
    problems = _limited(
        f"{model.label}: tensor {name!r} of {lead.label} is missing{nearest(name, extra)}" for name in missing
    )
    problems += _limited(_shape_problem(lead, model, name, info) for name, info in shapes)
    problems += _limited(
        f"{model.label}: tensor {name!r} is not in {lead.label}; if it belongs to the task alone, pass "
        f"--task-specific '{name.rpartition('.')[0] or name}.*'"
        for name in extra
    )
    return own, problems, notes


def _is_alias(name: str, model: Checkpoint, own: Mapping[str, TensorInfo]) -> bool:
    """A tied name that base does not store, whose tensor the model stores under the merged name as well."""
    if _tie_rank(name) == len(TIED) or model.config.get("tie_word_embeddings") is False:
        return False
    return any(_tie_rank(n) < len(TIED) and info.shape == model.tensors[name].shape for n, info in own.items())


def _prefix(missing: Sequence[str], extra: Sequence[str]) -> tuple[str, str] | None:
    """(old, new) so that replacing that prefix in every unknown name gives exactly the missing ones."""
    if not missing or len(missing) > len(extra):
        return None
    wanted = set(missing)
    for candidate in extra:
        first = missing[0]
        if candidate.endswith(first):
            old, new = candidate[: -len(first)], ""
        elif first.endswith(candidate):
            old, new = "", first[: -len(candidate)]
        else:
            continue
        if wanted <= {new + name[len(old) :] for name in extra if name.startswith(old)}:
            return old, new
    return None


def _shape_problem(lead: Checkpoint, model: Checkpoint, name: str, info: TensorInfo) -> str:
    shape, expected = list(info.shape), list(lead.tensors[name].shape)
    text = f"{model.label}: tensor {name!r} has shape {shape}, {lead.label} has {expected}"
    if len(shape) == 2 == len(expected) and shape[1] == expected[1] and _tie_rank(name) < len(TIED):
        return (
            f"{text}: its vocabulary was resized; resize it back (resize_token_embeddings({expected[0]})) and save it"
        )
    return f"{text}; if it belongs to the task alone, pass --task-specific '{name.rpartition('.')[0] or name}.*'"


def _dtype_problems(plan: TensorPlan, lead: Checkpoint, models: Sequence[Checkpoint]) -> list[str]:
    problems = []
    infos = [(lead.label, lead.tensors[plan.name])] + [(m.label, t) for m, t in zip(models, plan.models, strict=True)]
    for label, info in dict(infos).items():
        if plan.copy and info.dtype != plan.dtype:
            problems.append(f"{label}: tensor {plan.name!r} is {info.dtype}, {lead.label} has {plan.dtype}")
        elif not plan.copy and info.dtype not in FLOATS:
            problems.append(f"{label}: tensor {plan.name!r} is {info.dtype}; {', '.join(sorted(FLOATS))} can be merged")
    return problems


def _limited(problems: Iterable[str]) -> list[str]:
    listed = list(problems)
    more = len(listed) - LISTED
    return listed if more <= 1 else [*listed[:LISTED], f"… and {more} more like the last"]
