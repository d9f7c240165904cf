"""Features of inputs for a router."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..forms import explained

INPUTS = ("token_type_ids", "inputs_embeds", "pixel_values")  # that describe what a sample is, beside ids and mask


@explained
def mean_pooled(
    model: nn.Module, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **inputs: Any
) -> Tensor:
    """The mean over positions of a Hugging Face model's last hidden state, float32 [batch, width].

    Positions that attention_mask leaves out do not count. An encoder and decoder's state is its encoder's. Of further
    keyword arguments those that describe the input are taken, others (labels, …) not.
    """
    given = {"input_ids": input_ids, "attention_mask": attention_mask} | {name: inputs.get(name) for name in INPUTS}
    found: Any = model
    if not hasattr(found, "base_model") or not hasattr(found, "config"):
        raise InputError("features: the model is none of Hugging Face's; pass a function that computes its features")
    body = found.get_encoder() if getattr(found.config, "is_encoder_decoder", False) else found.base_model
    with torch.no_grad():
        output = body(**{name: value for name, value in given.items() if value is not None})
    state: Tensor = output.last_hidden_state.float()
    if attention_mask is None:
        return state.mean(1)
    weights = attention_mask.to(state.dtype).unsqueeze(-1)
    return (state * weights).sum(1) / weights.sum(1).clamp(min=1)
