"""What lies beside the weights of the result: its configuration, and mergekit's configuration that it was made by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ...errors import InputError
from ...formats.checkpoint import Checkpoint
from ...formats.folder import encoded, set_dtype, to_json
from ..merge_plan import MergePlan
from ..options import dtype_name
from .config import MergekitConfig
from .tokenizer import chat_template, files_of, home, read_tokenizer
from .vocabulary import Vocabulary
from .weave import Weave

CONFIGURATION = "mergekit_config.yml"  # as mergekit calls it
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# What a config.json calls the number of layers of a stack, by a word of the stack's name.
DEPTHS = {
    "decoder": ("decoder_layers", "num_decoder_layers"),
    "encoder": ("encoder_layers", "num_layers", "num_hidden_layers"),
    "": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth"),
}
BY_LAYER = ("layer_types",)  # lists with an entry for every layer


def files_beside(
    config: MergekitConfig,
    text: str,
    woven: Weave,
    words: Vocabulary | None,
    plan: MergePlan,
    opened: Mapping[str, Checkpoint],
) -> dict[str, bytes | None]:
    """Files by their names, which go before those of the lead; None are those that there must not be."""
    files: dict[str, bytes | None] = {CONFIGURATION: encoded(text)}
    files |= _tokenizer_files(config, words, plan, opened)
    said = plan.lead.config
    if said:
        made = _layered(said, woven)
        if words is not None:
            made = _with_vocabulary(made, words.size)
        if plan.dtype is not None:
            made = set_dtype(made, dtype_name(plan.dtype))
        if made != said:
            files["config.json"] = encoded(to_json(made))
    return files


def _tokenizer_files(
    config: MergekitConfig, words: Vocabulary | None, plan: MergePlan, opened: Mapping[str, Checkpoint]
) -> dict[str, bytes | None]:
    """The tokenizer, where it is not the lead's as it is."""
    template = _template(config, opened)
    if words is not None:
        return files_of(words.tokenizer, words.original, template)
    if template is None:
        return {}
    own = read_tokenizer(home(plan.lead))
    if own is None:
        raise InputError(f"chat_template: {plan.lead.path} has no tokenizer that it could belong to")
    return files_of(own, own, template)


def _template(config: MergekitConfig, opened: Mapping[str, Checkpoint]) -> str | None:
    """The chat template that is asked for: a Jinja text, or "auto", the one that most models have."""
    said = config.chat_template
    if said is None:
        return None
    if said == "auto":
        found = [chat_template(home(checkpoint)) for checkpoint in opened.values()]
        counts = Counter(template.strip() for template in found if template)
        return counts.most_common(1)[0][0] if counts else None
    if said == "chatml":
        return CHATML
    if "{" not in said:
        raise InputError(f"chat_template: {said!r} is one of mergekit's own; give its Jinja text, chatml, or auto")
    return said


def _with_vocabulary(config: dict[str, Any], size: int) -> dict[str, Any]:
    section = config.get("text_config")
    if isinstance(section, dict) and "vocab_size" in section:
        return config | {"text_config": section | {"vocab_size": size}}
    return config | {"vocab_size": size}


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
