"""Tokenizers as they lie on disk, and the one of the result. They are read as JSON: nothing is loaded, nothing run."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...formats.checkpoint import Checkpoint, read_json
from ...formats.folder import encoded, to_json

Json = dict[str, Any]
FAST, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
# What says of tokens what tokenizer.json says, in other words; where that is changed, they are wrong.
SLOW = ("tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")
FILES = (FAST, CONFIG, TEMPLATE, "chat_template.json", "special_tokens_map.json", *SLOW)
PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A model's tokens with their ids, those that were added to its vocabulary, and the file that says so."""

    folder: Path
    document: Json
    tokens: Mapping[str, int]
    added: Mapping[str, Json]

    @property
    def size(self) -> int:
        """Rows that an embedding needs."""
        return max(self.tokens.values(), default=-1) + 1


def home(checkpoint: Checkpoint) -> Path:
    """The folder that a model's tokenizer is in; of MODEL+ADAPTER, the model's."""
    place = checkpoint.folders[0]
    return place if place.is_dir() else place.parent


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a model's folder; None where it has none. InputError where it cannot be read."""
    if not (folder / FAST).is_file():
        other = [name for name in SLOW if (folder / name).is_file()]
        if not other:
            return None
        raise InputError(
            f"{folder}: has {other[0]} and no {FAST}; save a fast tokenizer (AutoTokenizer, save_pretrained) in it"
        )
    return tokenizer_of(read_json(folder / FAST), folder)


def tokenizer_of(document: Json, folder: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json."""
    model = document.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # a Unigram model's, with scores
        tokens = {str(entry[0]): i for i, entry in enumerate(vocabulary)}
    elif isinstance(vocabulary, dict):
        tokens = dict(vocabulary)
    else:
        raise InputError(f"{folder / FAST}: has no vocabulary; save the tokenizer again")
    added = {entry["content"]: entry for entry in document.get("added_tokens") or []}
    return Tokenizer(folder, document, tokens | {token: entry["id"] for token, entry in added.items()}, added)


def cut(tokenizer: Tokenizer, rows: int) -> Tokenizer:
    """The tokenizer without tokens that the model has no rows for."""
    if tokenizer.size <= rows:
        return tokenizer
    document = copy.deepcopy(tokenizer.document)
    model = document["model"]
    unused = {token for token, own in tokenizer.tokens.items() if own >= rows}
    if isinstance(model["vocab"], list):
        model["vocab"] = model["vocab"][:rows]
    else:
        model["vocab"] = {token: own for token, own in model["vocab"].items() if token not in unused}
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not unused & {*_pair(pair), "".join(_pair(pair))}]
    document["added_tokens"] = [entry for entry in document.get("added_tokens") or [] if entry["id"] < rows]
    return tokenizer_of(document, tokenizer.folder)


def extended(tokenizer: Tokenizer, more: Iterable[tuple[str, Json | None]]) -> Tokenizer:
    """The tokenizer with more tokens, each with how another has it added, or None where it is a plain one."""
    document, size, known = copy.deepcopy(tokenizer.document), tokenizer.size, set(tokenizer.tokens)
    entries: list[Json] = []
    for token, entry in more:
        if token not in known:
            entries.append((entry or PLAIN) | {"id": size + len(entries), "content": token})
            known.add(token)
    document["added_tokens"] = [*(document.get("added_tokens") or []), *entries]
    return tokenizer_of(document, tokenizer.folder)


def files_of(tokenizer: Tokenizer, original: Tokenizer, template: str | None) -> dict[str, bytes | None]:
    """The files of a tokenizer that was made of the original; None are those that there must not be."""
    files: dict[str, bytes | None] = {name: _read(original.folder / name) for name in FILES}
    config = read_json(original.folder / CONFIG) if files[CONFIG] is not None else {}
    if tokenizer.document != original.document:
        files |= dict.fromkeys(SLOW)
        files[FAST] = _written(tokenizer.document)
        if "added_tokens_decoder" in config:
            config["added_tokens_decoder"] = {
                str(entry["id"]): {key: value for key, value in entry.items() if key != "id"}
                for entry in sorted(tokenizer.added.values(), key=lambda entry: entry["id"])
            }
    if template is not None:
        config["chat_template"] = template
        if files[TEMPLATE] is not None:
            files[TEMPLATE] = encoded(template)
    if config:
        files[CONFIG] = _written(config)
    return files


def chat_template(folder: Path) -> str | None:
    """The template that a folder's tokenizer has."""
    file = folder / TEMPLATE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = read_json(folder / CONFIG).get("chat_template") if (folder / CONFIG).is_file() else None
    if isinstance(found, list):  # several by name
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
    return found.get("default") if isinstance(found, dict) else found


def _pair(merge: Any) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else list(merge)


def _read(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _written(content: Json) -> bytes:
    return encoded(to_json(content))
