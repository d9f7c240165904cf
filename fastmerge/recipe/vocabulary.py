"""Vocabularies of different lengths: embeddings and heads with rows for tokens that not all models have.

Rows of one number are taken for those of one token, as where tokens were added at the end; other tokens are matched by
mergekit configurations (mergekit/vocabulary.py). With "base" the result has the rows of base (without one, of the first
model), with "pad" those of the longest. A row that base or a model lacks is lent: by base, or where that lacks it too,
it is the mean of all that have it. So a token that base has not, and one model has, becomes that model's own row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from ..formats.checkpoint import Checkpoint
from ..formats.expanded import is_computed
from ..formats.gathered import Gathered, Rows
from ..formats.safetensors import FLOATS, TensorInfo

Vocab = Literal["error", "base", "pad"]
VOCABS = ("error", "base", "pad")

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
BIASES = ("lm_head.bias", "embed_out.bias", "cls.predictions.bias", "cls.predictions.decoder.bias")
OTHERS = ("tok_embeddings.weight", "embeddings.weight", "output.weight", "output_layer.weight")  # of InternLM, GLM
NAMES = (*TIED, *BIASES, *OTHERS)
# Files of a tokenizer.
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
)


class Resized(NamedTuple):
    """Checkpoints whose embeddings have the result's rows: how many, and the checkpoint that has all their tokens.

    `lead` is base, or the first model; `rows` is 0 where nothing had to be resized.
    """

    base: Checkpoint | None
    models: list[Checkpoint]
    rows: int = 0
    widest: Checkpoint | None = None
    notes: tuple[str, ...] = ()


def resized(vocab: Vocab, base: Checkpoint | None, models: Sequence[Checkpoint]) -> Resized:
    """Give all embeddings the rows that `vocab` asks for."""
    everyone = [*([base] if base else []), *models]
    counts = [rows_of(checkpoint) for checkpoint in everyone]
    if vocab == "error" or not counts[0] or len(set(counts) - {0}) < 2:
        return Resized(base, list(models))
    target = counts[0] if vocab == "base" else max(counts)
    lenders = [(own, count) for own, count in zip(everyone, counts, strict=True) if count]
    first = lenders[:1] if base is not None or vocab == "base" else []
    made = [
        _resized(own, count, target, first, lenders) if count else own
        for own, count in zip(everyone, counts, strict=True)
    ]
    notes = tuple(
        f"{own.label}: its vocabulary of {count} is "
        + (f"cut to {target}" if count > target else f"filled to {target}")
        for own, count in zip(everyone, counts, strict=True)
        if count not in (0, target)
    )
    widest = everyone[counts.index(target)]
    return Resized(made[0] if base else None, made[1:] if base else made, target, widest, notes)


def rows_of(checkpoint: Checkpoint) -> int:
    """How many tokens a model has rows for; 0 where none of its tensors is known to be of tokens."""
    found = (info for ending in NAMES for name, info in checkpoint.tensors.items() if is_of_tokens(name, ending))
    return next((info.shape[0] for info in found if info.shape), 0)


def is_of_tokens(name: str, ending: str) -> bool:
    """Whether a tensor's name ends so."""
    return name == ending or name.endswith("." + ending)


def files_beside(found: Resized, lead: Checkpoint) -> dict[str, bytes | None]:
    """The tokenizer's files of a result that has more tokens than its lead; None are those that there must not be."""
    widest = found.widest
    if widest is None or widest is lead or not widest.path.is_dir():
        return {}
    files = {name: widest.path / name for name in TOKENIZER}
    read = {name: file.read_bytes() if file.is_file() else None for name, file in files.items()}
    return read if any(read.values()) else {}


def set_rows(config: Any, rows: int) -> Any:
    """A config.json whose models of text have so many rows."""
    if not isinstance(config, dict):
        return config
    nested = {key: set_rows(value, rows) for key, value in config.items() if key.endswith("_config")}
    return config | nested | ({"vocab_size": rows} if "vocab_size" in config else {})


Lender = tuple[Checkpoint, int]


def _resized(
    own: Checkpoint, count: int, target: int, first: Sequence[Lender], lenders: Sequence[Lender]
) -> Checkpoint:
    """A checkpoint with `target` rows for tokens in the place of `count`; `first` lends before all `lenders`."""
    tensors = {}
    for name, info in own.tensors.items():
        ours = any(is_of_tokens(name, ending) for ending in NAMES) and info.dtype in FLOATS
        if not ours or info.shape[:1] != (count,) or count == target:
            tensors[name] = info
        elif count > target:
            tensors[name] = _cut(info, target)
        else:
            tensors[name] = _filled(info, target, _rows(first, info), _rows(lenders, info))
    return replace(own, tensors=tensors)


def _cut(info: TensorInfo, target: int) -> TensorInfo:
    """A tensor's first rows."""
    if is_computed(info):
        return Gathered.of(Rows((info,), tuple(range(target)), {}), info.dtype)
    shape = (target, *info.shape[1:])
    return replace(info, shape=shape, stop=info.start + target * (info.nbytes // info.shape[0]))


def _rows(lenders: Sequence[Lender], info: TensorInfo) -> list[TensorInfo]:
    """The tensors whose rows can stand for missing ones of `info`: of the same name, or tied to it, and as wide."""

    def wanted(checkpoint: Checkpoint) -> list[TensorInfo]:
        named = [checkpoint.tensors[info.name]] if info.name in checkpoint.tensors else []
        tied = [own for name, own in checkpoint.tensors.items() if any(is_of_tokens(name, end) for end in TIED)]
        return [*named, *tied]

    found = []
    for checkpoint, count in lenders:
        fitting = (own for own in wanted(checkpoint) if own.shape == (count, *info.shape[1:]) and own.dtype in FLOATS)
        found += [own for own in [next(fitting, None)] if own is not None]
    return found


def _filled(info: TensorInfo, target: int, first: Sequence[TensorInfo], lenders: Sequence[TensorInfo]) -> TensorInfo:
    """A tensor with the rows of others where it has none of its own."""
    count, sources, means = info.shape[0], [info, *first, *lenders], {}
    for row in range(count, target):
        places = [(i, row) for i in range(1, len(sources)) if sources[i].shape[0] > row]
        means[row] = tuple(places[:1] if places and places[0][0] <= len(first) else places)
    picks = (*range(count), *[-1] * (target - count))
    dtypes = {source.dtype for source in sources}
    dtype = next(iter(dtypes)) if len(dtypes) == 1 else "F64" if "F64" in dtypes else "F32"
    return Gathered.of(Rows(tuple(sources), picks, means), dtype)
