"""Gram matrices of what goes into linear layers, from batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, MergeError
from ..forms import well_formed
from ..fw.matching import slots
from ..fw.objective import Batches, check_batches
from ..fw.objectives import unlabelled


@well_formed
def gram_matrices(model: nn.Module, batches: Batches, *, task_specific: Sequence[str] = ()) -> dict[str, Tensor]:
    """XᵀX / N of the N rows X that go into each linear layer (Jin et al. 2023, arXiv 2212.09849).

    They are divided by the number of rows, so that models count equally however many samples each is shown. Every row
    counts, those of padding too. By the name of the layer's weight, [in, in], float32 (float64 of float64 inputs), for
    every `nn.Linear` that a batch goes through, but those whose weights are tied to others (output heads that are
    embeddings) or match `task_specific` patterns.

    model: a torch module, in the mode that it is in (call `.eval()` first); batches as `fm.fw.entropy` takes them.
    InputError for wrong arguments, MergeError where the result is not finite.
    """
    problems = check_batches({"all": batches})
    if problems:
        raise InputError(problems)
    layers = linear_layers(model, task_specific)
    found: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    hooks = [layer.register_forward_pre_hook(_adder(name, found, rows)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for batch in batches:
                inputs = unlabelled(batch, model)
                _ = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    found = {name: found[name] / rows[name] for name in layers if rows.get(name)}
    if not found:
        raise InputError("batches: go through no linear layer of the model that is merged")
    wild = [name for name, own in found.items() if not own.isfinite().all()]
    if wild:
        raise MergeError(f"the inputs of {wild[0]!r} are not finite; look at the model and its batches")
    return found


def linear_layers(model: nn.Module, task_specific: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear layers that RegMean solves for, by the names of their weights."""
    single = {name for name, slot in slots(model, task_specific).items() if len(slot.names) == 1}
    every = {f"{name}.weight" if name else "weight": m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    return {name: layer for name, layer in every.items() if name in single}


def _adder(name: str, found: dict[str, Tensor], rows: dict[str, int]) -> Callable[[nn.Module, Any], None]:
    def add(_: nn.Module, inputs: Any) -> None:
        x = inputs[0].detach().flatten(0, -2) if inputs[0].ndim > 1 else inputs[0].detach()[None]
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        own = x.T @ x
        found[name] = found[name].add_(own) if name in found else own
        rows[name] = rows.get(name, 0) + len(x)

    return add
