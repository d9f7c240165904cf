"""Families of checkpoints to merge: a base and fine-tunes with the tensors of Llama models, by default of 1.1 B
parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

PERIOD = 1 << 24  # noise repeats, from another start in every tensor, so that writing is as fast as the disk
VOCABULARY = 32_000


@dataclass(frozen=True)
class Size:
    """Of a Llama model: elements of a hidden state, of the MLP's, of all keys of a token, and of a head."""

    hidden: int
    intermediate: int
    keys: int
    head: int
    layers: int


SMALL = Size(2048, 5632, 256, 64, 22)
SIZES = {"1b": SMALL, "7b": Size(4096, 11_008, 4096, 128, 32), "13b": Size(5120, 13_824, 5120, 128, 40)}


def tensors(layers: int, size: Size = SMALL) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, intermediate, keys = size.hidden, size.intermediate, size.keys
    yield "model.embed_tokens.weight", (VOCABULARY, hidden)
    for i in range(layers):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", (hidden,)
        yield layer + "self_attn.q_proj.weight", (hidden, hidden)
        yield layer + "self_attn.k_proj.weight", (keys, hidden)
        yield layer + "self_attn.v_proj.weight", (keys, hidden)
        yield layer + "self_attn.o_proj.weight", (hidden, hidden)
        yield layer + "post_attention_layernorm.weight", (hidden,)
        yield layer + "mlp.gate_proj.weight", (intermediate, hidden)
        yield layer + "mlp.up_proj.weight", (intermediate, hidden)
        yield layer + "mlp.down_proj.weight", (hidden, intermediate)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (VOCABULARY, hidden)


def config(layers: int, size: Size = SMALL) -> dict[str, object]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "vocab_size": VOCABULARY,
        "num_hidden_layers": layers,
        "num_attention_heads": size.hidden // size.head,
        "num_key_value_heads": size.keys // size.head,
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
