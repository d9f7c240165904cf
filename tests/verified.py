"""Merged folders of every kind, and what changes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from folders import near, state, write

from fastmerge.formats.safetensors import read_header

SHAPES = {
    "embed.weight": (300, 700),
    "layers.0.weight": (33, 8),
    "layers.1.weight": (9,),
    "norm.weight": (8,),
    "empty": (0, 3),
}

JOBS: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear"},
    "emr": {"method": "emr"},
    "magmax with masks": {"method": "magmax", "params": {"modulators": True, "scale": 0.5}},
    "overridden": {"method": "task_arithmetic", "params": {"scale": 0.3}, "tensors": [("norm*", {"scale": 1.0})]},
    "wide": {"method": "task_arithmetic", "dtype": "float32"},
    "heads": {"method": "emr", "task_specific": ["head.*"]},
    "base's heads": {"method": "linear", "task_specific": ["head.*"]},
    "renamed": {"method": "linear", "rename": {"m1": [("model.", "")]}},
    "ties": {"method": "ties", "params": {"density": 0.3}},
    "ties by preset": {"method": "ties", "params": {"preset": "paper"}},
    "dare": {"method": "dare_ties", "params": {"seed": 7, "rescale": "l1"}, "tensors": [(["e*"], {"density": 0.9})]},
    "della": {"method": "della", "params": {"density": {"m0": 0.4, "m1": 0.5, "m2": 0.6}}},
    "tall masks": {"method": "tall_masks"},
    "fr": {"method": "fr", "params": {"targets": ["e*", "layers.0*"], "coefficients": "mean_of_means"}},
    "fr by tensor": {"method": "fr", "params": {"coefficients": "tensor", "align": "layer"}},
    "free": {"method": "free", "params": {"targets": "*.weight"}},
    "free, heads": {"method": "free", "params": {"scope": "global"}, "task_specific": ["head.*"]},
    "free by rows": {"method": "free", "params": {"scope": "row", "expert_density": 0.3, "rescale": "paper"}},
    "prefiltered": {"method": "ties", "params": {"prefilter": {"cutoff": 0.4, "targets": "*.weight"}}},
    "prefiltered emr": {"method": "emr", "params": {"prefilter": {"cutoff": 0.4}}},
    "gradient": {
        "method": "task_arithmetic",
        "params": {"scale": {"layers": [0.1, 0.9]}},
        "tensors": [("norm*", {"weights": {"m1": 2}}), ("norm*", {"scale": 2})],
    },
}


def job(name: str, root: Path) -> dict[str, Any]:
    """The arguments of a merge, and its inputs on the disk."""
    base = state(0, torch.bfloat16, SHAPES) | {"ids": torch.arange(9)}
    folders = {}
    for k in range(3):
        own = near({n: t for n, t in base.items() if n != "ids"}, k + 1) | {"ids": torch.arange(9)}
        own |= {"head.weight": torch.full((k + 2, 8), 0.5)} if "head" in name else {}
        if name == "renamed" and k == 1:
            own = {f"model.{n}": t for n, t in own.items()}
        folders[f"m{k}"] = write(root / f"m{k}", own)
    base |= {"head.weight": torch.ones(1, 8)} if "head" in name else {}
    return {"base": write(root / "base", base), "models": folders, **JOBS[name]}


def flip(file: Path, tensor: str, byte: int = 0) -> None:
    """Change one byte of a tensor."""
    data = bytearray(file.read_bytes())
    data[read_header(file).tensors[tensor].start + byte] ^= 1
    file.write_bytes(data)


def rewrite(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))
