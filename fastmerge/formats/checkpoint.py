"""Checkpoints as they lie on disk: one safetensors file, or a folder with one or with an index of shards."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .safetensors import Header, TensorInfo, read_header

STEMS = ("model", "diffusion_pytorch_model", "adapter_model")  # names that Hugging Face libraries write
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
JSON_LIMIT = 50_000_000  # bytes
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a checkpoint, in the order of its files, its config.json ({} without) and notes for the user."""

    path: Path
    label: str
    tensors: dict[str, TensorInfo]
    config: dict[str, Any]
    headers: tuple[Header, ...]
    notes: tuple[str, ...]

    def identity(self) -> list[dict[str, Any]]:
        """What tells this checkpoint from another without reading its weights."""
        return [{"file": h.file.name, "size": h.size, "header_sha256": h.digest} for h in self.headers]


def open_checkpoint(path: str | Path, label: str) -> Checkpoint:
    """Open a folder, a .safetensors file, or a model of the Hugging Face Hub ("org/name", downloaded into its cache).

    Reads headers only. Raises InputError with every problem found; `label` is the name they give the model.
    """
    root = _locate(str(path), label)
    files, index, notes = ([root], None, []) if root.is_file() else _files(root, label)
    headers, problems = [], []
    for file in files:
        try:
            headers.append(read_header(file))
        except InputError as error:
            problems += [f"{label}: {problem}" for problem in error.problems]
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for tensor in header.tensors.values():
            if tensor.name in tensors:
                first = tensors[tensor.name].file.name
                problems.append(f"{label}: tensor {tensor.name!r} is both in {first} and in {header.file.name}")
            tensors[tensor.name] = tensor
    if index is not None and not problems:
        problems += _index_problems(root, label, index, tensors)
        unlisted = [name for name in tensors if name not in index]
        if unlisted:
            notes.append(f"{label}: {len(unlisted)} tensors that the index does not list are ignored ({unlisted[0]}, …)")
            tensors = {name: tensor for name, tensor in tensors.items() if name in index}
    config: dict[str, Any] = {}
    if root.is_dir() and (root / "config.json").is_file():
        try:
            config = read_json(root / "config.json")
        except InputError as error:
            problems += [f"{label}: {problem}" for problem in error.problems]
    if not problems and not tensors:
        problems.append(f"{label}: {root} holds no tensors")
    if problems:
        raise InputError(problems)
    return Checkpoint(root, label, tensors, config, tuple(headers), tuple(notes))


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file of unknown origin."""
    try:
        if file.stat().st_size > JSON_LIMIT:
            raise InputError(f"{file}: larger than {JSON_LIMIT} bytes, which no such file should be")
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object")
    return content


def _locate(path: str, label: str) -> Path:
    root = Path(path).expanduser()
    if root.is_dir() or root.is_file():
        if root.is_file() and root.suffix != ".safetensors":
            raise InputError(f"{label}: {root} is no safetensors file; {_convert(root.suffix)}")
        return root
    if not HUB_NAME.fullmatch(path) or root.parent.is_dir():
        raise InputError(f"{label}: {path} does not exist; give a folder, a .safetensors file, or a Hub name (org/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=HUB_FILES))
    except Exception as error:  # the Hub client raises OSError, ValueError and errors of its HTTP library
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{label}: {path} is no folder here, nor could it be had from the Hub: {reason}") from None


def _convert(suffix: str) -> str:
    if suffix in PICKLES:
        return "pickle checkpoints can run code when opened: load it once where you trust it and save_pretrained() it"
    return "expected a folder or a .safetensors file"


def _files(root: Path, label: str) -> tuple[list[Path], dict[str, str] | None, list[str]]:
    """The files of a folder, the index's weight map if there is one, and notes."""
    present = sorted(root.glob("*.safetensors"))
    for stem in STEMS:
        index_file = root / f"{stem}.safetensors.index.json"
        single = root / f"{stem}.safetensors"
        if index_file.is_file():
            index = _read_index(index_file, label)
            files = [root / name for name in sorted(set(index.values()))]
        elif single.is_file():
            index, files = None, [single]
        else:
            continue
        stray = [file.name for file in present if file not in files]
        notes = [f"{label}: ignored {', '.join(stray)}, which no index lists"] if stray else []
        return files, index, notes
    if len(present) == 1:
        return present, None, []
    if present:
        names = ", ".join(file.name for file in present)
        raise InputError(f"{label}: {root} has several safetensors files ({names}) and no index that says which belong")
    pickles = sorted(file for file in root.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise InputError(f"{label}: {root} holds {pickles[0].name} and no safetensors; {_convert(pickles[0].suffix)}")
    raise InputError(f"{label}: {root} holds no *.safetensors file")


def _read_index(file: Path, label: str) -> dict[str, str]:
    weight_map = read_json(file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{label}: {file} has no weight_map; download it again")
    problems = []
    for shard in sorted({str(name) for name in weight_map.values()}):
        if shard != Path(shard).name or shard in ("", ".", "..") or "\\" in shard or not shard.endswith(".safetensors"):
            problems.append(f"{label}: {file} points to {shard!r}, which is no safetensors file name of its folder")
        elif not (file.parent / shard).is_file():
            problems.append(f"{label}: {file} lists {shard}, which is missing; download it")
    if problems:
        raise InputError(problems)
    return {str(name): str(shard) for name, shard in weight_map.items()}


def _index_problems(root: Path, label: str, index: dict[str, str], tensors: dict[str, TensorInfo]) -> list[str]:
    problems = []
    for name, shard in index.items():
        if name not in tensors or tensors[name].file.name != shard:
            where = f"it is in {tensors[name].file.name}" if name in tensors else "it is in no shard"
            problems.append(f"{label}: the index of {root} says that {name!r} is in {shard}; {where}: download it again")
    return problems
