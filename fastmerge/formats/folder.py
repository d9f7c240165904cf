"""What a model folder holds beside its weights: configuration, tokenizer, model card."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..errors import InputError, MergeError

SUFFIXES = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".bpe", ".vocab", ".py"}
RECORDS = {  # of another merge
    "ada_merging.json",
    "emr.json",
    "experts.json",
    "extraction.json",
    "fastmerge.json",
    "fisher.json",
    "frank_wolfe.json",
    "regmean.json",
    "router.json",
}
SIZE_LIMIT = 100_000_000  # bytes


def holds(folder: Path, name: str) -> bool:
    """Whether a folder has such a file; InputError where that cannot be seen."""
    try:
        return (folder / name).is_file()
    except OSError as error:  # no permission, or a name longer than the file system takes
        raise InputError(
            f"{folder}: cannot be looked at: {error.strerror}; mend that, or give another folder"
        ) from None


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
    file.write_bytes(encoded(to_json(content)))


def write_whole(file: Path, content: bytes) -> None:
    """Write a file whole or not at all; MergeError where it cannot be."""
    scratch = file.with_name(f".{file.name}.{uuid4().hex[:8]}.partial")  # processes of two machines may have one number
    try:
        scratch.write_bytes(content)
        os.replace(scratch, file)
    except OSError as error:
        raise MergeError(f"{file}: cannot be written: {error.strerror}; mend that, and write it again") from None
    finally:
        with suppress(OSError):  # it is there where it has not become the file
            scratch.unlink()


def to_json(content: Any) -> str:
    """JSON the same to the byte every time."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def encoded(text: str) -> bytes:
    """Text as UTF-8. What it has no bytes for, such as those of a path in another encoding, is escaped as JSON does."""
    return text.encode(errors="backslashreplace")


def printable(text: str) -> str:
    """Text as `encoded` writes it."""
    return encoded(text).decode()


def set_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A config.json that says which dtype its weights have, under the name it already uses."""
    key = "dtype" if "dtype" in config else "torch_dtype"
    return {**config, key: dtype}


def model_card(title: str, lines: Iterable[str], recipe: dict[str, Any]) -> str:
    """A README.md for a model folder: what it is, and the recipe with the identity of every input."""
    body = "\n".join(lines)
    text = json.dumps(recipe, indent=2, ensure_ascii=False)
    return f"---\ntags:\n- merge\n- fastmerge\n---\n\n# {title}\n\n{body}\n\n```json\n{text}\n```\n"
