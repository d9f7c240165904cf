"""Tiny models with the names and the configuration of a Llama, which mergekit knows too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from folders import near, state, write
from torch import Tensor

HIDDEN, MLP, HEADS, VOCAB = 16, 24, 2, 40


def config(layers: int, vocab: int = VOCAB, *, tied: bool = False) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "num_hidden_layers": layers,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
    }


def shapes(layers: int, vocab: int = VOCAB, *, tied: bool = False) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, HIDDEN)}
    for i in range(layers):
        layer = {
            "input_layernorm": (HIDDEN,),
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (HIDDEN, HIDDEN),
            "self_attn.v_proj": (HIDDEN, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "post_attention_layernorm": (HIDDEN,),
            "mlp.up_proj": (MLP, HIDDEN),
            "mlp.gate_proj": (MLP, HIDDEN),
            "mlp.down_proj": (HIDDEN, MLP),
        }
        found |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    found["model.norm.weight"] = (HIDDEN,)
    return found if tied else found | {"lm_head.weight": (vocab, HIDDEN)}


def family(
    root: Path, names: Mapping[str, int], dtype: torch.dtype = torch.float32, *, layers: int = 4, tied: bool = False
) -> dict[str, Path]:
    """Folders of `base` and of fine-tunes of it by name, each drawn by its own seed."""
    base = state(0, dtype, shapes(layers, tied=tied))
    made: dict[str, Mapping[str, Tensor]] = {"base": base} | {n: near(base, seed) for n, seed in names.items()}
    return {name: write(root / name, tensors, config(layers, tied=tied)) for name, tensors in made.items()}
