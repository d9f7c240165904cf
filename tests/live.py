"""A small model to switch, and folders of tasks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from experts import Changes, add_experts, sparse
from folders import near, write
from tensors import BF16
from torch import Tensor, nn

import fastmerge as fm

TASKS = ["math", "code", "law"]
SCALES = {"math": 1.5, "code": -0.75, "law": 2.25}  # of experts


class Net(nn.Module):
    """Embeddings, tied to the output where asked for, a layer of more than one block, and buffers of all kinds."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.bfloat16, tied: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(50, 8)
        self.up = nn.Linear(8, 9000, bias=False)
        self.down = nn.Linear(9000, 8)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 50, bias=False)
        if tied:
            self.out.weight = self.embed.weight
        self.register_buffer("steps", torch.tensor([seed]))
        self.register_buffer("cache", torch.full((3,), float(seed)), persistent=False)
        self.to(dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.norm(self.down(self.up(self.embed(ids)))))


def bits(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all tensors, as integers."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {name: t.detach().clone().view(words[t.element_size()]) for name, t in model.state_dict().items()}


def same(model: nn.Module, expected: dict[str, Tensor]) -> bool:
    return all(torch.equal(t, expected[name]) for name, t in bits(model).items())


def stored(model: nn.Module) -> dict[str, Tensor]:
    """The state dict as a checkpoint has it: tied tensors once."""
    tied = getattr(model, "out", None) is not None and model.out.weight is model.embed.weight
    return {n: t for n, t in model.state_dict().items() if not (tied and n == "out.weight")}


def family(root: Path, dtype: torch.dtype = torch.bfloat16, tied: bool = True) -> tuple[Path, dict[str, Path]]:
    """The folders of a base, Net(0), and of a fine-tune per task."""
    base = stored(Net(0, dtype, tied))
    weights = {n: t for n, t in base.items() if t.is_floating_point()}
    models = {task: write(root / task, {**base, **near(weights, k + 1)}) for k, task in enumerate(TASKS)}
    return write(root / "base", base), models


def emr(root: Path, dtype: torch.dtype = torch.bfloat16, tied: bool = True) -> Path:
    """An EMR artefact, with its base and models beside it."""
    base, models = family(root, dtype, tied)
    fm.merge("emr", base, models, root / "emr")
    return root / "emr"


def changes(state: dict[str, Tensor], dtype: torch.dtype = BF16) -> dict[str, Changes]:
    """Experts of a state, by task."""
    return {task: sparse(state, k + 1, dtype=dtype) for k, task in enumerate(TASKS)}


def free(root: Path, dtype: torch.dtype = BF16, tied: bool = True, **options: Any) -> Path:
    """A folder of experts on Net(0)."""
    state = stored(Net(0, dtype, tied))
    return add_experts(write(root / "free", state), changes(state), scales=SCALES, **options)
