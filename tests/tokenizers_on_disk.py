"""Tiny tokenizers as they lie on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_tokenizer(
    folder: Path, tokens: Sequence[str], added: Sequence[str] = (), *, template: str | None = None
) -> Path:
    """A byte-pair tokenizer of these tokens in this order, whose longer ones are merged of two; `added` come after."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [f"{t[:-1]} {t[-1]}" for t in tokens if len(t) > 1 and t[:-1] in vocabulary and t[-1] in vocabulary]
    entries = [
        {"id": len(tokens) + i, "content": token, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for i, token in enumerate(added)
    ]
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    document = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": entries, "normalizer": None}
    document |= {"pre_tokenizer": None, "post_processor": None, "decoder": None}
    document |= {"model": model | {"vocab": vocabulary, "merges": merges}}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config["added_tokens_decoder"] = {
        str(entry["id"]): {key: value for key, value in entry.items() if key != "id"} for entry in entries
    }
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
