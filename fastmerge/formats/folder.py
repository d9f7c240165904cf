"""What a model folder holds beside its weights: configuration, tokenizer, model card."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

SUFFIXES = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".bpe", ".vocab", ".py"}
RECORDS = {"emr.json", "experts.json", "router.json", "fastmerge.json"}  # of another merge
SIZE_LIMIT = 100_000_000  # bytes


def copy_side_files(source: Path, folder: Path, leave_out: Collection[str] = ()) -> None:
    """Copy configuration and tokenizer files of a checkpoint folder, not its weights, indices and model card."""
    if not source.is_dir():
        return
    for file in sorted(source.iterdir()):
        weights = ".index." in file.name or file.name in (*RECORDS, *leave_out) or file.suffix not in SUFFIXES
        target = folder / file.name
        if not weights and file.is_file() and file.stat().st_size <= SIZE_LIMIT and not target.exists():
            target.write_bytes(file.read_bytes())


def write_json(file: Path, content: Any) -> None:
    """Write JSON the same to the byte every time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(to_json(content), encoding="utf-8")


def to_json(content: Any) -> str:
    """JSON the same to the byte every time."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def set_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A config.json that says which dtype its weights have, under the name it already uses."""
    key = "dtype" if "dtype" in config else "torch_dtype"
    return {**config, key: dtype}


def model_card(title: str, lines: Iterable[str], recipe: dict[str, Any]) -> str:
    """A README.md for a model folder: what it is, and the recipe with the identity of every input."""
    body = "\n".join(lines)
    text = json.dumps(recipe, indent=2, ensure_ascii=False)
    return f"---\ntags:\n- merge\n- fastmerge\n---\n\n# {title}\n\n{body}\n\n```json\n{text}\n```\n"
