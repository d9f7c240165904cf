"""Tied tensors: several names, such as those of embeddings and output head, of one tensor that is merged once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..formats.checkpoint import Checkpoint
from ..formats.safetensors import TensorInfo
from .vocabulary import TIED


def tied_groups(lead: Checkpoint, names: Sequence[str], models: Sequence[Checkpoint]) -> dict[str, tuple[str, ...]]:
    """Each tensor to merge, with the names tied to it.

    Tied are the names of TIED with one shape, where the config says so, or says nothing and some checkpoint stores
    only part of them.
    """
    groups: dict[str, tuple[str, ...]] = dict.fromkeys(names, ())
    tied = sorted((name for name in names if can_tie(name)), key=_tie_rank)
    tied = [name for name in tied if lead.tensors[name].shape == lead.tensors[tied[0]].shape]
    if len(tied) < 2 or not _ties(lead, tied, models):
        return groups
    source, *aliases = tied
    for alias in aliases:
        del groups[alias]
    groups[source] = tuple(aliases)
    return groups


def assumed(lead: Checkpoint, groups: Mapping[str, tuple[str, ...]], models: Sequence[Checkpoint]) -> list[str]:
    """What is merged once though no config says that it is tied, because some model stores only a part."""
    if _says_tied(lead) is True:
        return []
    return [
        f"{lead.label}: {', '.join(aliases)} counts as tied to {name}, since {model.label} stores not all of them; "
        "if they differ, let config.json say tie_word_embeddings: false"
        for name, aliases in groups.items()
        for model in [m for m in models if not {name, *aliases} <= m.tensors.keys()][:1]
        if aliases
    ]


def twin(lead: Checkpoint, model: Checkpoint, name: str) -> TensorInfo | None:
    """The tensor that serves as `name`, a tied name that the model does not store."""
    said = _says_tied(model)
    ties = _says_tied(lead) if said is None else said
    if not can_tie(name) or ties is False:
        return None
    shape = lead.tensors[name].shape
    names = [n for n in model.tensors if can_tie(n) and (ties or n not in lead.tensors)]
    return next((model.tensors[n] for n in sorted(names, key=_tie_rank) if model.tensors[n].shape == shape), None)


def is_alias(name: str, model: Checkpoint, own: Mapping[str, TensorInfo]) -> bool:
    """A tied name that base does not store, whose tensor the model stores under the merged name as well."""
    if not can_tie(name) or _says_tied(model) is False:
        return False
    return any(can_tie(n) and info.shape == model.tensors[name].shape for n, info in own.items())


def can_tie(name: str) -> bool:
    """Whether a tensor of this name may be tied to others."""
    return _tie_rank(name) < len(TIED)


def _tie_rank(name: str) -> int:
    """Where a name's ending stands in TIED; at the end of it, if it is none of these."""
    return next((i for i, end in enumerate(TIED) if name == end or name.endswith("." + end)), len(TIED))


def _ties(lead: Checkpoint, tied: Sequence[str], models: Sequence[Checkpoint]) -> bool:
    said = [_says_tied(checkpoint) for checkpoint in (lead, *models)]
    if False in said:  # somebody's head was trained apart from its embeddings
        return False
    return said[0] is True or any(0 < sum(name in model.tensors for name in tied) < len(tied) for model in models)


def _says_tied(checkpoint: Checkpoint) -> bool | None:
    """Whether the config ties head and embeddings; None where it does not say."""
    if checkpoint.config.get("share_encoder_decoder_embeddings") is False:
        return False
    for config in (checkpoint.config, checkpoint.config.get("text_config")):
        if isinstance(config, dict) and isinstance(config.get("tie_word_embeddings"), bool):
            return bool(config["tie_word_embeddings"])
    return None
