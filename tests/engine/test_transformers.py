"""Merged folders load in transformers and run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastmerge as fm

transformers = pytest.importorskip("transformers")


def save_family(root: Path, make: object, count: int = 2) -> tuple[Path, dict[str, Path]]:
    """A base and fine-tunes of it, as transformers saves them."""
    torch.manual_seed(0)
    base = make(0)  # type: ignore[operator]
    base.save_pretrained(root / "base")
    folders = {}
    for k in range(count):
        model = make(k + 1)  # type: ignore[operator]
        own = model.state_dict()
        for name, tensor in base.state_dict().items():
            if own[name].shape == tensor.shape:
                own[name] = tensor + 0.01 * torch.randn_like(tensor) if tensor.is_floating_point() else tensor
        model.load_state_dict(own)
        model.save_pretrained(root / f"m{k}")
        folders[f"m{k}"] = root / f"m{k}"
    return root / "base", folders


def test_tied_llama(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    base, models = save_family(tmp_path, lambda _: transformers.LlamaForCausalLM(config))
    fm.merge("task_arithmetic", base, models, tmp_path / "out", {"scale": 0.5})
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_vit_with_a_task_head(tmp_path: Path) -> None:
    def make(seed: int) -> torch.nn.Module:
        config = transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            image_size=16,
            patch_size=8,
            num_labels=seed + 2,
        )
        return transformers.ViTForImageClassification(config)

    base, models = save_family(tmp_path, make)
    fm.merge("emr", base, models, tmp_path / "emr", task_specific=["classifier.*"])
    fm.task(tmp_path / "emr", "m1", tmp_path / "task")
    model = transformers.ViTForImageClassification.from_pretrained(tmp_path / "task")
    own = transformers.ViTForImageClassification.from_pretrained(models["m1"])
    assert torch.equal(model.classifier.weight, own.classifier.weight)
    assert model(torch.randn(1, 3, 16, 16)).logits.shape == (1, 4)


def test_t5_with_shared_embeddings(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=64,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    base, models = save_family(tmp_path, lambda _: transformers.T5ForConditionalGeneration(config))
    fm.merge("linear", base, models, tmp_path / "out")
    model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert model.encoder.embed_tokens.weight.data_ptr() == model.shared.weight.data_ptr()
    ids = torch.tensor([[1, 2, 3]])
    assert model(input_ids=ids, labels=ids).loss.isfinite()
