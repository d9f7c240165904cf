"""Folders of experts to test with: a backbone, and per task sparse changes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from folders import write
from safetensors.torch import save_file
from tensors import expert_of
from torch import Tensor

from fastmerge.formats.checkpoint import open_checkpoint

Changes = Mapping[str, tuple[Tensor, Tensor]]  # per tensor: where (bool, its shape), and values (its shape)


def sparse(
    state: Mapping[str, Tensor], seed: int, density: float = 0.1, dtype: torch.dtype = torch.bfloat16
) -> Changes:
    """Random changes of a share of every float tensor's elements."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.rand(t.shape, generator=generator) < density,
            torch.randn(t.shape, generator=generator).to(dtype),
        )
        for name, t in state.items()
        if t.is_floating_point()
    }


def add_experts(
    folder: Path,
    experts: Mapping[str, Changes],
    *,
    base: Path | None = None,
    scales: Mapping[str, float] | None = None,
    heads: Mapping[str, Mapping[str, Tensor]] | None = None,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    **record: object,
) -> Path:
    """Make a model folder one of experts."""
    (folder / "experts").mkdir()
    for task, changes in experts.items():
        parts = {}
        for name, (where, values) in changes.items():
            expert = expert_of(where.flatten(), values.flatten())
            parts |= {f"{name}/{part}": t.contiguous() for part, t in expert._asdict().items()}
        save_file(parts, folder / "experts" / f"{task}.safetensors")
    for task, tensors in (heads or {}).items():
        (folder / "tasks" / task).mkdir(parents=True)
        save_file(dict(tensors), folder / "tasks" / task / "model.safetensors", {"format": "pt"})
        if configs:
            (folder / "tasks" / task / "config.json").write_text(json.dumps(configs[task]))
    source = open_checkpoint(base or folder, "base")
    content = {
        "format": "fastmerge.experts",
        "version": 1,
        "fastmerge": "0",
        "method": "free",
        "params": {},
        "tasks": list(experts),
        "base": {"source": str(base), "files": source.identity()},
        "aliases": {},
        "copied": [name for name, info in source.tensors.items() if info.dtype.startswith("I")],
        "replaced": [],
        "experts": {
            task: {
                "file": f"{task}.safetensors",
                "scale": (scales or {}).get(task, 1.0),
                "density": 0.1,
                "scope": "tensor",
            }
            for task in experts
        },
        "backbone": open_checkpoint(folder, "backbone").identity(),
        **record,
    }
    (folder / "experts.json").write_text(json.dumps(content))
    return folder


def experts_folder(root: Path, state: Mapping[str, Tensor], tasks: int = 3, **options: Any) -> Path:
    """A backbone of this state with experts t0, t1, …"""
    folder = write(root, state)
    return add_experts(folder, {f"t{k}": sparse(state, k + 1) for k in range(tasks)}, **options)
