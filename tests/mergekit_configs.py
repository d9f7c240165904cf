"""Configurations of mergekit's to compare by, of the models `base`, `a`, `b`, `c`; `d` has no head of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Config = dict[str, Any]

ATTENTION = {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]}
MLP = {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]}


def model(name: str, **parameters: Any) -> Config:
    return {"model": name} | ({"parameters": parameters} if parameters else {})


def source(name: str, first: int, last: int, **parameters: Any) -> Config:
    return model(name, **parameters) | {"layer_range": [first, last]}


def based(method: str, *models: Config, **parameters: Any) -> Config:
    return {"merge_method": method, "base_model": "base", "models": list(models), "parameters": parameters}


# Whose results are the same but for the order of roundings, where nothing is drawn and no tie is broken.
ALIKE: dict[str, Config] = {
    "linear": {
        "merge_method": "linear",
        "models": [model("a", weight=1.0), model("b", weight=0.3), model("c", weight=[0, 1])],
        "dtype": "float32",
    },
    "linear, not normalized": {
        "merge_method": "linear",
        "models": [model("a", weight=0.4), model("b", weight="3e-1")],
        "parameters": {"normalize": False},
    },
    "linear, base as a model": {
        "merge_method": "linear",
        "base_model": "base",
        "models": [model("a"), model("b")],
        "parameters": {"weight": [{"filter": "norm", "value": 0.5}, {"value": [0.2, 0.9]}]},
    },
    "slerp": {
        "merge_method": "slerp",
        "base_model": "a",
        "models": [model("a"), model("b")],
        "parameters": {"t": [ATTENTION, MLP, {"value": 0.5}]},
        "dtype": "float32",
    },
    "task_arithmetic": based("task_arithmetic", model("a", weight=1.0), model("b", weight=0.3), **{"lambda": 0.7}),
    "task_arithmetic, normalized": based(
        "task_arithmetic", model("base"), model("a", weight=[0.1, 0.5, 1.0]), model("b", weight=0.3), normalize=True
    ),
    "ties": based(
        "ties",
        model("a", weight=1.0, density=0.5),
        model("b", weight=0.3, density=[1, 0.2]),
        model("c", weight=[{"filter": "mlp", "value": 0.5}, {"value": 1}], density=0.3),
        int8_mask=True,
    ),
    "ties, summed and rescaled": based(
        "ties", model("a", weight=1.0, density=0.5), model("b", weight=0.3), normalize=False, rescale=True
    ),
    "breadcrumbs": based("breadcrumbs", model("a", weight=1.0, density=0.5, gamma=0.1), model("b", weight=0.3)),
    "breadcrumbs_ties": based(
        "breadcrumbs_ties",
        model("a", weight=1.0, density=0.5, gamma=0.1),
        model("b", weight=0.3, density=0.9, gamma=0.05),
        normalize=True,
    ),
    "nuslerp": {
        "merge_method": "nuslerp",
        "models": [model("a", weight=[0.2, 1]), model("b", weight=0.7)],
    },
    "nuslerp of task vectors by row": based(
        "nuslerp", model("a", weight=0.4), model("b", weight=0.7), nuslerp_flatten=False, nuslerp_row_wise=True
    ),
    "nuslerp by column": based("nuslerp", model("a", weight=0.4), model("b", weight=0.7), nuslerp_flatten=False),
    "multislerp": {
        "merge_method": "multislerp",
        "models": [model("a", weight=0.5), model("b", weight=0.7), model("c", weight=[0.1, 1])],
    },
    "multislerp of task vectors": based(
        "multislerp", model("a", weight=0.5), model("b", weight=0.7), model("c", weight=0.4), normalize_weights=False
    ),
    "karcher": {
        "merge_method": "karcher",
        "models": [model("a"), model("b"), model("c")],
        "parameters": {"max_iter": 30, "tol": 1e-9},
    },
    "model_stock": based("model_stock", model("a"), model("b"), model("c")),
    "model_stock by row": based("model_stock", model("a"), model("b"), filter_wise=True),
    "sce": based("sce", model("a"), model("b"), model("c"), select_topk=0.3, int8_mask=True),
    "sce, all": based("sce", model("a"), model("b")),
    "nearswap": based("nearswap", model("a"), t=[0.01, 0.05]),
    "arcee_fusion": based("arcee_fusion", model("a")),
    "passthrough, scaled": {
        "merge_method": "passthrough",
        "models": [model("a", scale=[{"filter": "o_proj", "value": 0.5}, {"filter": "down_proj", "value": [0.1, 1]}])],
    },
    "layers of two models": {
        "merge_method": "passthrough",
        "slices": [{"sources": [source("a", 0, 3)]}, {"sources": [source("b", 1, 4)]}],
    },
    "layers twice": {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [source("a", 0, 2)]},
            {"sources": [source("a", 1, 3, scale=[{"filter": "o_proj", "value": 0.0}, {"value": 1.0}])]},
        ],
        "dtype": "bfloat16",
    },
    "slices, slerp": {
        "merge_method": "slerp",
        "base_model": "a",
        "slices": [
            {"sources": [source("a", 0, 2), source("b", 1, 3)], "parameters": {"t": 0.3}},
            {"sources": [source("b", 2, 4), source("a", 2, 4)]},
        ],
        "parameters": {"t": [0.1, 0.9]},
        "out_dtype": "bfloat16",
    },
    "slices, ties": {
        "merge_method": "ties",
        "base_model": "base",
        "slices": [
            {"sources": [source("base", 0, 3), source("a", 1, 4, density=[0.2, 0.9]), source("b", 0, 3, weight=0.3)]},
            {"sources": [source("c", 3, 4), source("base", 3, 4), source("a", 0, 1)], "base_model": "c"},
        ],
        "parameters": {"weight": 0.5, "density": 0.4, "normalize": True},
    },
    "modules": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "modules": {"default": {"models": [model("a", weight=0.3), model("b")], "parameters": {"weight": [0.5, 0.1]}}},
    },
    "tied embeddings": {
        "merge_method": "task_arithmetic",
        "base_model": "tied",
        "models": [model("d", weight=0.6)],
    },
}

# Whose results have a part of chance.
RANDOM: dict[str, Config] = {
    "dare_linear": based("dare_linear", model("a", weight=1.0, density=0.6)),
    "dare_linear, not rescaled": based("dare_linear", model("a", weight=1.0, density=0.6), rescale=False),
    "dare_ties": based("dare_ties", model("a", weight=1.0, density=0.3)),
    "della": based("della", model("a", weight=1.0, density=0.5, epsilon=0.3)),
    "della_linear": based("della_linear", model("a", weight=1.0, density=0.6)),
}


def located(config: Config, folders: Mapping[str, Path]) -> Config:
    """The configuration with the folders of its models."""
    found = copy.deepcopy(config)
    blocks = [found, *found.get("modules", {}).values(), *found.get("slices", [])]
    for block in blocks:
        for entry in [*block.get("models", []), *block.get("sources", [])]:
            entry["model"] = str(folders[entry["model"]])
        if "base_model" in block:
            block["base_model"] = str(folders[block["base_model"]])
    return found
