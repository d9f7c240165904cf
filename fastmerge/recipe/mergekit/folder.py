"""What lies beside the weights of the result: its configuration, and mergekit's configuration that it was made by."""

from __future__ import annotations

from typing import Any

from ...formats.folder import set_dtype, to_json
from ..plan import DTYPE_NAMES, MergePlan
from .config import MergekitConfig
from .weave import Weave

CONFIGURATION = "mergekit_config.yml"  # as mergekit calls it
# What a config.json calls the number of layers of a stack, by a word of the stack's name.
DEPTHS = {
    "decoder": ("decoder_layers", "num_decoder_layers"),
    "encoder": ("encoder_layers", "num_layers", "num_hidden_layers"),
    "": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth"),
}
BY_LAYER = ("layer_types",)  # lists with an entry for every layer


def files_beside(config: MergekitConfig, text: str, woven: Weave, plan: MergePlan) -> dict[str, bytes]:
    """Files by their names, which go before those of the lead."""
    files = {CONFIGURATION: text.encode()}
    said = plan.lead.config
    if said:
        made = _layered(said, woven)
        if plan.dtype is not None:
            made = set_dtype(made, next(name for name, code in DTYPE_NAMES.items() if code == plan.dtype))
        if made != said:
            files["config.json"] = to_json(made).encode()
    return files


def _layered(config: dict[str, Any], woven: Weave) -> dict[str, Any]:
    """A config.json that knows the layers of the result."""
    for stack, layers in woven.layers.items():
        section = "vision_config" if "vis" in stack else "text_config"
        numbers = [number for _, number in layers]
        if isinstance(config.get(section), dict):
            config = config | {section: _restacked(config[section], stack, numbers)}
        else:
            config = _restacked(config, stack, numbers)
    return config


def _restacked(config: dict[str, Any], stack: str, numbers: list[int]) -> dict[str, Any]:
    """A config.json, or a part of it, that is right about the layers of one stack."""
    word = next(word for word in DEPTHS if word in stack)
    depths = [key for key in DEPTHS[word] if isinstance(config.get(key), int)]
    changed: dict[str, Any] = {key: len(numbers) for key in depths if config[key] == config[depths[0]]}
    for key in BY_LAYER:
        own = config.get(key)
        if isinstance(own, list) and max(numbers) < len(own):
            changed[key] = [own[number] for number in numbers]
    return config | changed
