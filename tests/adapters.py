"""PEFT's adapter folders, written by hand, and the models that they make, expanded by a rule of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

PREFIX = "base_model.model."


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], **config: Any) -> Path:
    """An adapter folder; tensors by module and part, `layers.0.lora_A.weight`."""
    folder.mkdir(parents=True)
    whole = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "base_model_name_or_path": None, **config}
    (folder / "adapter_config.json").write_text(json.dumps(whole))
    stored = {PREFIX + name: t.contiguous() for name, t in tensors.items()}
    save_file(stored, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def lora(
    modules: Mapping[str, tuple[int, int]], rank: int, seed: int, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """A and B of modules by their weights' shapes [out, in]."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, (rows, columns) in modules.items():
        found[f"{name}.lora_A.weight"] = (0.3 * torch.randn(rank, columns, generator=generator)).to(dtype)
        found[f"{name}.lora_B.weight"] = (0.3 * torch.randn(rows, rank, generator=generator)).to(dtype)
    return found


def added(base: Tensor, up: Tensor, down: Tensor, scale: float) -> Tensor:
    """base + scale · up · down, column of `up` by row of `down`, in float32, rounded once."""
    delta = up[:, 0].float().outer(down[0].float())
    for j in range(1, up.shape[1]):
        delta += up[:, j].float().outer(down[j].float())
    return (base.float().reshape(delta.shape) + torch.tensor(scale) * delta).to(base.dtype).view(base.shape)
