"""Tiny checkpoints to test with, written byte by byte: neither torch nor fastmerge's own writer has a part in them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ITEMSIZE = {"BOOL": 1, "U8": 1, "F8_E4M3": 1, "F16": 2, "BF16": 2, "I32": 4, "F32": 4, "I64": 8, "F64": 8}

Spec = tuple[str, tuple[int, ...]]  # dtype, shape


def entry(dtype: str, shape: tuple[int, ...], start: int = 0) -> dict[str, Any]:
    """A tensor's entry in a header."""
    stop = start + math.prod(shape) * ITEMSIZE[dtype]
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def write_raw(file: Path, header: bytes | Mapping[str, Any], data: bytes = b"", length: int | None = None) -> Path:
    """A file of this header, right or wrong; `length` is the one it claims, by default the true one."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return file


def write_file(file: Path, tensors: Mapping[str, Spec]) -> Path:
    """A whole file of tensors in this order; byte i of the data is i modulo 251."""
    header, stop = {}, 0
    for name, (dtype, shape) in tensors.items():
        header[name] = entry(dtype, shape, stop)
        stop = header[name]["data_offsets"][1]
    return write_raw(file, header, bytes(i % 251 for i in range(stop)))


def write_index(folder: Path, weight_map: Mapping[str, Any], stem: str = "model") -> Path:
    file = folder / f"{stem}.safetensors.index.json"
    file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return file


def write_folder(folder: Path, tensors: Mapping[str, Spec], config: Mapping[str, Any] | None = None) -> Path:
    """A model folder with one file."""
    folder.mkdir(parents=True)
    write_file(folder / "model.safetensors", tensors)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_sharded(folder: Path, *shards: Mapping[str, Spec], stem: str = "model") -> Path:
    """A model folder with an index and its shards, named as Hugging Face names them."""
    folder.mkdir(parents=True)
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        name = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        write_file(folder / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    write_index(folder, weight_map, stem)
    return folder
