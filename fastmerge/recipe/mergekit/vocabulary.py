"""Embeddings of models whose tokens differ: which row of which model becomes which row of the result.

A model's row of a token that it has is its own. That of one it lacks is, as mergekit has it: where the configuration
says, else the row of the only model that has the token, else base's, else the mean of all that have it, else zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import InputError, nearest
from ...formats.checkpoint import Checkpoint
from ...formats.gathered import Gathered, Rows
from ...formats.safetensors import TensorInfo
from ..vocabulary import NAMES, is_of_tokens
from .config import MergekitConfig, ModelToken, Token, Zero
from .config import Tokenizer as Tokens
from .dtypes import widest
from .tokenizer import Tokenizer, cut, extended, home, read_tokenizer
from .weave import Weave


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The result's tokenizer, the one that it was made of, and those of the models; `size` is the number of rows."""

    tokenizer: Tokenizer
    original: Tokenizer
    models: Mapping[str, Tokenizer]
    rows: Mapping[str, int]
    size: int


def vocabulary(config: MergekitConfig, opened: Mapping[str, Checkpoint]) -> Vocabulary | None:
    """What a configuration says of tokens; None where it says nothing. InputError for what is wrong with it."""
    said = config.tokens
    if said is None:
        return None
    lead = config.references()[0]
    rows = {name: _rows(checkpoint) for name, checkpoint in opened.items()}
    found = {name: read_tokenizer(home(checkpoint)) for name, checkpoint in opened.items()}
    first = found[lead]
    if first is None:
        raise InputError(f"tokenizer: {lead} has none (tokenizer.json), and it is the one that others are held against")
    models = {name: own or first for name, own in found.items()}
    original = models[lead] if said.source in ("base", "union") else models.get(said.source)
    if original is None and Path(said.source).is_dir():
        original = read_tokenizer(Path(said.source))
    if original is None:
        known = ["union", "base", *models]
        raise InputError(f"tokenizer: there is none in {said.source!r}{nearest(said.source, known)}")
    made = cut(original, rows[lead]) if said.source in ("base", "union") else original
    if said.source == "union":
        others = {name: own for name, own in models.items() if name != lead}
        plain = [
            (token, None)
            for name, own in others.items()
            for token, number in sorted(own.tokens.items(), key=lambda entry: entry[1])
            if token not in own.added and number < rows[name]
        ]
        added = [(t, e) for name, own in others.items() for t, e in own.added.items() if e["id"] < rows[name]]
        made = extended(made, [*(entry for entry in plain if entry[0] not in dict(added)), *added])
    made = extended(made, [(token, None) for token in said.tokens or {}])
    multiple = said.pad_to_multiple_of or 1
    return Vocabulary(made, original, models, rows, -(-made.size // multiple) * multiple)


def _rows(checkpoint: Checkpoint) -> int:
    """How many tokens a model has rows for."""
    for ending in NAMES:
        for name, info in checkpoint.tensors.items():
            if is_of_tokens(name, ending) and info.shape:
                return info.shape[0]
    raise InputError(f"tokenizer: {checkpoint.path} has no embeddings that are known by their name")


def aligned(woven: Weave, words: Vocabulary, config: MergekitConfig) -> Weave:
    """The merge with all embeddings in the order of the result's tokens."""
    seats = [*([woven.base] if woven.base else []), *woven.models]
    changed: list[dict[str, TensorInfo]] = [{} for _ in seats]
    for name, place in woven.places.items():
        if not any(is_of_tokens(name, ending) for ending in NAMES):
            continue
        base = place.stretch.base.model if place.stretch.base else config.base_model
        models = [*([base or ""] if woven.base else []), *(strand.model for strand in place.stretch.strands)]
        infos = {
            model: seat.tensors[name]
            for model, seat in zip(models, seats, strict=True)
            if name in seat.tensors and seat.tensors[name].shape[:1] == (words.rows[model],)
        }
        made = _matched(words, config.tokens, base, infos)
        for own, model in zip(changed, models, strict=True):
            own |= {name: made[model]} if model in made else {}
    done = [replace(seat, tensors=seat.tensors | own) for seat, own in zip(seats, changed, strict=True)]
    return replace(woven, base=done[0] if woven.base else None, models=done[1:] if woven.base else done)


def _matched(
    words: Vocabulary, said: Tokens | None, base: str | None, infos: Mapping[str, TensorInfo]
) -> dict[str, TensorInfo]:
    """The embeddings of every model in the order of the result's tokens."""
    settings = said.tokens or {} if said else {}
    known = {model: {t: i for t, i in words.models[model].tokens.items() if i < words.rows[model]} for model in infos}
    picks = {model: [-1] * words.size for model in infos}
    means: dict[str, dict[int, list[tuple[str, int]]]] = {model: {} for model in infos}
    for token, row in words.tokenizer.tokens.items():
        setting = settings.get(token, Token())
        have = [(model, own[token]) for model, own in known.items() if token in own]
        other: list[tuple[str, int]] | None = None
        for model, own in known.items():
            if token in own and not setting.force:
                picks[model][row] = own[token]
            else:
                other = _substitute(token, setting, have, base, words, infos) if other is None else other
                means[model][row] = other
    padding = words.size - words.tokenizer.size
    return {model: _gathered(model, infos, picks[model], means[model], padding) for model in infos}


def _substitute(
    token: str,
    setting: Token,
    have: Sequence[tuple[str, int]],
    base: str | None,
    words: Vocabulary,
    infos: Mapping[str, TensorInfo],
) -> list[tuple[str, int]]:
    """The rows whose mean models have that lack the token."""
    where, source = f"tokenizer.tokens.{token}", setting.source
    if isinstance(source, Zero):
        return []
    if source is None:
        if setting.force:
            raise InputError(f"{where}: force needs a source")
        return [own for own in have if own[0] == base] or list(have)
    model = source.model if isinstance(source, ModelToken) else source
    if model not in infos:
        raise InputError(f"{where}: {model!r} is none of the models that are merged here{nearest(model, infos)}")
    name = token
    if isinstance(source, ModelToken):
        if (source.token is None) == (source.token_id is None):
            raise InputError(f"{where}: give either token or token_id of a model's token")
        name = source.token or ""
    number = source.token_id if isinstance(source, ModelToken) else None
    row = words.models[model].tokens.get(name) if number is None else number
    if row is None or row >= words.rows[model]:
        raise InputError(
            f"{where}: {model} has no token {name!r}" if number is None else f"{where}: {model} has no {row}"
        )
    return [(model, row)]


def _gathered(
    model: str,
    infos: Mapping[str, TensorInfo],
    picks: Sequence[int],
    means: Mapping[int, Sequence[tuple[str, int]]],
    padding: int,
) -> TensorInfo:
    """One model's embeddings; as they are, where nothing changes."""
    own = infos[model]
    if not means and not padding and list(picks) == list(range(own.shape[0])):
        return own
    order = [model, *(name for name in infos if name != model)]
    places = {row: tuple((order.index(name), place) for name, place in rows) for row, rows in means.items()}
    dtype = widest(infos.values()) or own.dtype
    return Gathered.of(Rows(tuple(infos[name] for name in order), tuple(picks), places, padding), dtype)
