"""What is in a model pool, and a model with other weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from fusion_bench import BaseModelPool, LazyStateDict
from fusion_bench.models.utils import get_target_state_dict
from torch import Tensor, nn

from ...errors import InputError


def opened(models: Any) -> BaseModelPool:
    """A pool, of a pool or of models by name. InputError without a pre-trained model or others to merge."""
    pool = models if isinstance(models, BaseModelPool) else BaseModelPool(models)
    if not pool.has_pretrained or not pool.model_names:
        named = ", ".join(pool.all_model_names) or "none"
        raise InputError(f"modelpool: needs a model _pretrained_ and others to merge with it; there are: {named}")
    return pool


def state(model: Any) -> Mapping[str, Tensor]:
    """A model's tensors: those of its `_fusion_bench_target_modules`, where it has such; a lazy one reads its own.

    Of names that are one tensor, such as tied embeddings, the first.
    """
    if isinstance(model, LazyStateDict):
        lazy: Mapping[str, Tensor] = model
        return lazy
    tensors, first = get_target_state_dict(model), dict[tuple[int, torch.Size], str]()
    for name, tensor in tensors.items():
        first.setdefault((tensor.data_ptr(), tensor.shape), name)
    return {name: tensors[name] for name in first.values()}


def filled(model: Any, tensors: Mapping[str, Tensor], *, inplace: bool) -> nn.Module:
    """The model with these tensors: itself, a copy, or of a lazy one a module that consists of them."""
    if not isinstance(model, LazyStateDict):
        module: nn.Module = model if inplace else copy.deepcopy(model)
        module.load_state_dict(module.state_dict() | dict(tensors))
        return module
    if model.meta_module is None:
        raise InputError("modelpool: a lazy state dict needs its meta_module_class to become a model")
    lazy: nn.Module = copy.deepcopy(model.meta_module)
    lazy.load_state_dict(dict(tensors), strict=False, assign=True)
    tie: Any = getattr(lazy, "tie_weights", None)
    if tie is not None:
        tie()
    missing = [name for name, tensor in lazy.state_dict().items() if tensor.is_meta]
    if missing:
        raise InputError(f"modelpool: the files of _pretrained_ lack {', '.join(missing)}")
    return lazy
