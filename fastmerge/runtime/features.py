"""Features of inputs for a router."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "inputs_embeds", "pixel_values")


def mean_pooled(model: nn.Module, input_ids: Tensor | None = None, **inputs: Any) -> Tensor:
    """The mean over positions of a Hugging Face model's last hidden state, float32 [batch, width].

    Positions that attention_mask leaves out do not count. An encoder and decoder's state is its encoder's. Of further
    keyword arguments those that describe the input are taken, others (labels, …) not.
    """
    given = {"input_ids": input_ids, **inputs}
    given = {name: given[name] for name in INPUTS if given.get(name) is not None}
    encodes = getattr(model.config, "is_encoder_decoder", False)  # type: ignore[union-attr]
    body = model.get_encoder() if encodes else model.base_model  # type: ignore[operator, union-attr]
    with torch.no_grad():
        state: Tensor = body(**given).last_hidden_state.float()  # type: ignore[operator]
    mask = given.get("attention_mask")
    if mask is None or mask.shape != state.shape[:2]:
        return state.mean(1)
    weights = mask.to(state.dtype).unsqueeze(-1)
    return (state * weights).sum(1) / weights.sum(1).clamp(min=1)
