"""Checkpoint folders to merge, and a reader of results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

SHAPES = {"embed.weight": (50, 8), "layers.0.weight": (33, 8), "layers.0.bias": (33,), "norm.weight": (8,)}


def state(
    seed: int, dtype: torch.dtype = torch.bfloat16, shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def near(base: Mapping[str, Tensor], seed: int, delta: float = 0.05) -> dict[str, Tensor]:
    """A fine-tune of base."""
    noise = state(seed, torch.float32, {name: tuple(t.shape) for name, t in base.items()})
    return {name: (t.float() + delta * noise[name]).to(t.dtype) for name, t in base.items()}


def write(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, object] | None = None) -> Path:
    folder.mkdir(parents=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "test"}))
    return folder


def read(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, "pt") as stream:
            tensors |= {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - no mapping
    return tensors


def family(
    root: Path,
    count: int = 3,
    dtype: torch.dtype = torch.bfloat16,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
) -> tuple[Path, dict[str, Path]]:
    """A base and `count` fine-tunes, m0, m1, …"""
    base = state(0, dtype, shapes)
    folders = {f"m{k}": write(root / f"m{k}", near(base, k + 1)) for k in range(count)}
    return write(root / "base", base), folders


def content(folder: Path) -> dict[str, bytes]:
    """All files, to the byte."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def weights(folder: Path) -> dict[str, bytes]:
    """The files of weights, to the byte."""
    return {name: data for name, data in content(folder).items() if name.endswith(".safetensors")}


class Patched:
    """A module with some of its functions replaced."""

    def __init__(self, module: object, **replaced: object) -> None:
        self._module, self._replaced = module, replaced

    def __getattr__(self, name: str) -> object:
        return self._replaced.get(name) or getattr(self._module, name)
