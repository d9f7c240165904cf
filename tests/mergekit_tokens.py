"""Models whose tokens differ, and configurations that merge them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama
import mergekit_configs
import torch
from folders import state, write
from mergekit_configs import Config, based, model, source
from tokenizers_on_disk import write_tokenizer

LETTERS = [chr(97 + i) for i in range(26)]
TOKENS = {"base": [*LETTERS, "ab", "cd", "abc"], "b": [*reversed(LETTERS), "ab", "xy"]}
TOKENS["a"] = TOKENS["base"]
ADDED = {"base": ["<s>"], "a": ["<s>", "<a>"], "b": ["<s>", "<b>", "<a>"]}
PADDED = {"base": 2}  # rows that no token has

BOTH = based("task_arithmetic", model("a", weight=0.4), model("b", weight=0.6))
SAID: dict[str, Any] = {
    "<a>": {"source": "b", "force": True},
    "<new>": {"source": {"kind": "model_token", "model": "a", "token": "abc"}},
    "<z>": {"source": {"kind": "zero"}},
}
TOKENIZED: dict[str, Config] = {
    "base": BOTH | {"tokenizer_source": "base"},
    "a model": BOTH | {"tokenizer_source": "a"},
    "union": based("linear", model("base", weight=0.2), model("a", weight=0.4), model("b", weight=0.4))
    | {"tokenizer_source": "union"},
    "said": BOTH
    | {"tokenizer": {"source": "union", "pad_to_multiple_of": 16, "tokens": SAID}, "chat_template": "auto"},
    "slices": {
        "merge_method": "passthrough",
        "base_model": "base",
        "slices": [{"sources": [source("base", 0, 2)]}, {"sources": [source("b", 0, 1)]}],
        "tokenizer_source": "union",
    },
}


def models(root: Path) -> dict[str, Path]:
    """Folders of `base`, `a` and `b`."""
    made = {}
    for seed, name in enumerate(("base", "a", "b")):
        rows = len(TOKENS[name]) + len(ADDED[name]) + PADDED.get(name, 0)
        folder = write(root / name, state(seed, torch.float32, llama.shapes(2, rows)), llama.config(2, rows))
        template = "{{ 1 }}" if name == "base" else "{{ 2 }}"
        made[name] = write_tokenizer(folder, TOKENS[name], ADDED[name], template=template)
    return made


def located(config: Config, folders: dict[str, Path]) -> Config:
    """The configuration with the folders of its models, in the section on tokens too."""
    found = mergekit_configs.located(config, folders)
    if found.get("tokenizer_source") in folders and found["tokenizer_source"] != "base":
        found["tokenizer_source"] = str(folders[found["tokenizer_source"]])
    for token in found.get("tokenizer", {}).get("tokens", {}).values():
        if isinstance(token["source"], str):
            token["source"] = str(folders[token["source"]])
        elif "model" in token["source"]:
            token["source"]["model"] = str(folders[token["source"]["model"]])
    return found
