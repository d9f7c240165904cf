"""Objectives ready to use: the mean loss of a batch, as `frank_wolfe` takes them.

A batch is a mapping of what the model takes by keyword (input_ids, attention_mask, pixel_values, …) and `labels`, or a
pair (inputs, labels), or (unlabelled) inputs alone. Tensors are moved to the model's device. A model's output is its
logits, or has them as `.logits`; they are widened to float32. Mixtures over tasks are mappings: of batches by task, and
of these functions where tasks need different ones (`frank_wolfe(…, task_weights=…)`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError

IGNORED = -100  # a label that does not count


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Labelled classification: logits [N, C] and labels int64 [N] (those of -100 do not count)."""
    inputs, labels = _labelled(batch, model)
    return functional.cross_entropy(logits(model, inputs), labels, ignore_index=IGNORED)


def causal_lm(model: nn.Module, batch: Any) -> Tensor:
    """Causal language modelling: the mean over tokens of the cross-entropy of each but the first, given those before.

    The batch has input_ids [N, T], and may have labels [N, T] (the ids by default; those of -100 do not count) and an
    attention_mask, whose padding does not count.
    """
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        raise InputError("causal_lm: a batch must be a mapping with input_ids")
    given = _moved(dict(batch), model)
    labels = given.pop("labels", given["input_ids"])
    if "attention_mask" in given:
        labels = labels.masked_fill(given["attention_mask"] == 0, IGNORED)
    found = logits(model, given)[:, :-1]
    return functional.cross_entropy(found.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


def entropy(model: nn.Module, batch: Any) -> Tensor:
    """Entropy minimisation for unlabelled batches: the mean over samples of −Σ_c p_c log p_c, logits [N, C].

    `labels`, where the batch has them, are not looked at (AdaMerging, Yang et al. 2024, arXiv 2310.02575).
    """
    logs = functional.log_softmax(logits(model, unlabelled(batch, model)), -1)
    return -(logs.exp() * logs).sum(-1).mean()


def logits(model: nn.Module, inputs: Any) -> Tensor:
    """What a model returns for inputs that are on its device, float32 at least."""
    output = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    found: Tensor = output if isinstance(output, Tensor) else output.logits
    return found.float() if found.dtype != torch.float64 else found


def unlabelled(batch: Any, model: nn.Module) -> Any:
    """A batch's inputs on the model's device, without the labels that it may have."""
    if isinstance(batch, Mapping):
        inputs: Any = {name: value for name, value in batch.items() if name != "labels"}
    else:
        inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    return _moved(inputs, model)


def _labelled(batch: Any, model: nn.Module) -> tuple[Any, Tensor]:
    if isinstance(batch, Mapping) and "labels" in batch:
        given = _moved(dict(batch), model)
        return given, given.pop("labels")
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return _moved(batch[0], model), _moved(batch[1], model)
    raise InputError("cross_entropy: a batch must be a mapping with labels, or a pair (inputs, labels)")


def _moved(value: Any, model: nn.Module) -> Any:
    if isinstance(value, Mapping):
        return {name: _moved(inner, model) for name, inner in value.items()}
    return value.to(next(model.parameters()).device) if isinstance(value, Tensor) else value
