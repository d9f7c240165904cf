"""Adapter folders that peft writes: a merge of one is peft's merge_and_unload, within a rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from folders import read
from torch import Tensor

import fastmerge as fm

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
BOTH = ["q_proj", "v_proj", "up_proj"]


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "gpt2":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
    if kind == "biases":
        config = transformers.LlamaConfig(**TINY, attention_bias=True)
        model = transformers.LlamaForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
        return model
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY))


def shaken(model: Any, seed: int) -> Any:
    """A trained adapter: what can be trained is somewhere else."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


CASES: dict[str, tuple[str, Any]] = {
    "lora": ("llama", lambda: peft.LoraConfig(r=4, target_modules=BOTH)),
    "rslora": ("llama", lambda: peft.LoraConfig(r=4, target_modules=BOTH, use_rslora=True, lora_alpha=3)),
    "patterns": (
        "llama",
        lambda: peft.LoraConfig(
            r=4,
            target_modules=BOTH,
            rank_pattern={"layers.1.self_attn.q_proj": 6, "up_proj": 2},
            alpha_pattern={r"model\.layers\.0\.mlp\.up_proj": 11},
        ),
    ),
    "modules to save": (
        "llama",
        lambda: peft.LoraConfig(r=4, target_modules=BOTH, modules_to_save=["lm_head", "norm"]),
    ),
    "embeddings": ("llama", lambda: peft.LoraConfig(r=4, target_modules=["embed_tokens", "lm_head", "k_proj"])),
    "biases": ("biases", lambda: peft.LoraConfig(r=4, target_modules=BOTH, bias="all")),
    "own biases": ("biases", lambda: peft.LoraConfig(r=4, target_modules=BOTH, bias="lora_only")),
    "added biases": ("biases", lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_bias=True)),
    "Conv1D": ("gpt2", lambda: peft.LoraConfig(r=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "Conv1D, unsaid": ("gpt2", lambda: peft.LoraConfig(r=4, target_modules=["c_attn", "c_proj"])),
    "ia3": (
        "llama",
        lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ),
    "ia3 with biases": ("biases", lambda: peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[])),
    "ia3 of Conv1D": (
        "gpt2",
        lambda: peft.IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"]),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_is_what_peft_merges(tmp_path: Path, case: str, dtype: torch.dtype) -> None:
    kind, config = CASES[case]
    model_of(kind).to(dtype).save_pretrained(tmp_path / "base")
    adapted = shaken(peft.get_peft_model(model_of(kind).to(dtype), config()), 1)
    adapted.save_pretrained(tmp_path / "adapter")
    fm.merge("linear", None, {"a": f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"}, tmp_path / "out")
    merged: dict[str, Tensor] = adapted.merge_and_unload().state_dict()
    before, ours = read(tmp_path / "base"), read(tmp_path / "out")
    changed = 0
    for name, tensor in ours.items():
        theirs = merged[name].to(tensor.dtype).float()
        largest = theirs.abs().max()  # a sum may be smaller than its terms
        places = 1 if tensor.dtype == torch.bfloat16 else 4  # the products' own roundings show in float32
        assert (tensor.float() - theirs).abs().max() <= places * torch.finfo(tensor.dtype).eps * largest, name
        changed += not tensor.equal(before[name])
    assert changed >= 2


@pytest.mark.filterwarnings("ignore")
def test_the_merged_model_loads_and_computes_what_peft_computes(tmp_path: Path) -> None:
    model_of("llama").save_pretrained(tmp_path / "base")
    adapted = shaken(peft.get_peft_model(model_of("llama"), peft.LoraConfig(r=4, target_modules=BOTH)), 1)
    adapted.save_pretrained(tmp_path / "adapter")
    fm.merge("task_arithmetic", tmp_path / "base", {"a": tmp_path / "adapter"}, tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.allclose(loaded(tokens).logits, adapted.eval()(tokens).logits, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_adapters_merged_as_adapters_load_in_peft(tmp_path: Path) -> None:
    """(IA)³, of which the mean of factors is the mean of models; the folder is an adapter."""
    model_of("llama").save_pretrained(tmp_path / "base")
    config = peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    for k in range(2):
        shaken(peft.get_peft_model(model_of("llama"), config), k).save_pretrained(tmp_path / f"a{k}")
    fm.merge("linear", None, {f"a{k}": tmp_path / f"a{k}" for k in range(2)}, tmp_path / "adapter")
    fm.merge("linear", tmp_path / "base", {f"a{k}": tmp_path / f"a{k}" for k in range(2)}, tmp_path / "model")
    loaded = peft.PeftModel.from_pretrained(model_of("llama"), tmp_path / "adapter").merge_and_unload().state_dict()
    for name, tensor in read(tmp_path / "model").items():
        assert torch.allclose(loaded[name], tensor, atol=1e-6), name
