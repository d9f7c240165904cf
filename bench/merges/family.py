"""A family of checkpoints to merge: a base and fine-tunes with the tensors of a Llama model of 1.1 B parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, INTERMEDIATE, VOCABULARY, KEY_VALUE = 2048, 5632, 32_000, 256
HEAD = 64  # elements of an attention head
PERIOD = 1 << 24  # noise repeats, from another start in every tensor, so that writing is as fast as the disk


def tensors(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for i in range(layers):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", (HIDDEN,)
        yield layer + "self_attn.q_proj.weight", (HIDDEN, HIDDEN)
        yield layer + "self_attn.k_proj.weight", (KEY_VALUE, HIDDEN)
        yield layer + "self_attn.v_proj.weight", (KEY_VALUE, HIDDEN)
        yield layer + "self_attn.o_proj.weight", (HIDDEN, HIDDEN)
        yield layer + "post_attention_layernorm.weight", (HIDDEN,)
        yield layer + "mlp.gate_proj.weight", (INTERMEDIATE, HIDDEN)
        yield layer + "mlp.up_proj.weight", (INTERMEDIATE, HIDDEN)
        yield layer + "mlp.down_proj.weight", (HIDDEN, INTERMEDIATE)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def config(layers: int) -> dict[str, object]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "vocab_size": VOCABULARY,
        "num_hidden_layers": layers,
        "num_attention_heads": HIDDEN // HEAD,
        "num_key_value_heads": KEY_VALUE // HEAD,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def write(folder: Path, models: int, layers: int = 22) -> list[Path]:
    """The folders of a base and `models` fine-tunes in bfloat16, written where they are not there yet."""
    torch.manual_seed(0)
    noise = torch.randn(PERIOD)
    folders = [folder / "base", *(folder / f"model{k}" for k in range(models))]
    for number, target in enumerate(folders):
        if (target / "config.json").is_file():
            continue
        target.mkdir(parents=True, exist_ok=True)
        state, start = {}, 0
        for name, shape in tensors(layers):
            size = torch.Size(shape).numel()
            base, delta = (_take(noise, size, start + 7919 * shift) for shift in (0, number))
            state[name] = (0.02 * base + (0.002 * number) * delta).bfloat16().view(shape)
            start += size + 1
        save_file(state, target / "model.safetensors", {"format": "pt"})
        (target / "config.json").write_text(json.dumps(config(layers)))
    return folders


def _take(noise: torch.Tensor, size: int, start: int) -> torch.Tensor:
    start %= PERIOD
    return noise.repeat((start + size) // PERIOD + 1)[start : start + size]
