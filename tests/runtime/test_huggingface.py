"""Hugging Face models built from a folder's configuration: they compute, generate, and know their task's labels."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from experts import add_experts, experts_folder, sparse
from folders import state
from safetensors.torch import load_file
from tokenizers_on_disk import write_tokenizer
from torch._subclasses import FakeTensorMode

import fastmerge as fm
from fastmerge.errors import InputError
from fastmerge.runtime import RoutedModel, Router, mean_pooled

transformers = pytest.importorskip("transformers")

LLAMA = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}
BERT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
T5 = {
    "vocab_size": 64,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def llama(root: Path) -> Path:
    """A tied bfloat16 Llama with three experts."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).bfloat16()
    model.save_pretrained(root / "free")
    weights = load_file(root / "free" / "model.safetensors")
    return add_experts(root / "free", {f"t{k}": sparse(weights, k, 0.05) for k in range(3)})


def classifiers(root: Path) -> Path:
    """An EMR artefact of BERT classifiers with labels of their own."""
    torch.manual_seed(0)

    def save(name: str, labels: list[str]) -> Path:
        config = transformers.BertConfig(**BERT, id2label=dict(enumerate(labels)))
        model = transformers.BertForSequenceClassification(config)
        model.save_pretrained(root / name)
        return root / name

    base = transformers.BertForSequenceClassification(transformers.BertConfig(**BERT))
    base.save_pretrained(root / "base")
    models = {"mood": save("mood", ["sad", "glad", "calm"]), "spam": save("spam", ["ham", "spam"])}
    fm.merge("emr", root / "base", models, root / "emr", task_specific=["classifier.*"])
    return root / "emr"


def test_llama_generates_and_keeps_its_tie(tmp_path: Path) -> None:
    live = fm.runtime.load(llama(tmp_path), task="t1")
    assert isinstance(live.model, transformers.LlamaForCausalLM)
    assert live.dtype == torch.bfloat16
    assert live.lm_head.weight.data_ptr() == live.get_input_embeddings().weight.data_ptr()
    with torch.no_grad():
        one = live(IDS).logits
        live.set_task({"t0": 0.5, "t2": 0.5})
        assert not torch.equal(live(IDS).logits, one)
        live.set_task("t1")
        assert torch.equal(live(IDS).logits, one)
    assert live.generate(IDS, attention_mask=MASK, max_new_tokens=3, do_sample=False).shape == (2, 7)


def test_emr_task_is_the_written_model(tmp_path: Path) -> None:
    """Heads of other sizes, outputs, and labels of the configuration."""
    live = fm.runtime.load(classifiers(tmp_path))
    names = {"mood": ["sad", "glad", "calm"], "spam": ["ham", "spam"]}
    for task in ("mood", "spam", "mood"):
        live.set_task(task)
        fm.task(tmp_path / "emr", task, tmp_path / "written", overwrite=True)
        expected = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "written")
        with torch.no_grad():
            assert torch.equal(live(IDS).logits, expected(IDS).logits)
        assert live.config.id2label == dict(enumerate(names[task])) == expected.config.id2label
        assert live.config.num_labels == live.num_labels == len(names[task])
    labels = torch.tensor([2, 0])
    assert live(IDS, labels=labels).loss.isfinite()
    live.set_task(None)
    assert live.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}


def test_no_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="transformers cannot be imported") as caught:
        fm.runtime.load(llama_folder(tmp_path))
    assert len(caught.value.problems) == 1


def llama_folder(root: Path, **config: Any) -> Path:
    """A folder whose configuration says what is given."""
    folder = experts_folder(root / "free", state(0), 1)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **LLAMA, **config}))
    return folder


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text('{"model_type": "unheard_of"}'), "transformers cannot build"),
    ],
)
def test_no_such_model(tmp_path: Path, change: Callable[[Path], object], expected: str) -> None:
    folder = llama_folder(tmp_path)
    change(folder)
    with pytest.raises(InputError, match=expected):
        fm.runtime.load(folder)


def test_an_architecture_that_transformers_lacks(tmp_path: Path) -> None:
    """Nor is any other name of the library taken for one."""
    for name in ("UnheardOfForCausalLM", "AutoConfig", "logging"):
        folder = llama_folder(tmp_path / name, architectures=[name])
        with pytest.raises(InputError, match=f"has no model '{name}'; build the model yourself"):
            fm.runtime.load(folder)


@pytest.mark.parametrize(
    ("kind", "config", "arguments"),
    [
        ("LlamaForCausalLM", "LlamaConfig", LLAMA),
        ("BertForMaskedLM", "BertConfig", BERT),
        ("T5ForConditionalGeneration", "T5Config", T5),
    ],
)
def test_mean_pooled_leaves_padding_out(kind: str, config: str, arguments: dict[str, Any]) -> None:
    """A padded sample has the features that it has alone."""
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**arguments)).eval()
    both = mean_pooled(model, IDS, attention_mask=MASK, labels=IDS)
    assert both.dtype == torch.float32
    assert both.shape == (2, 16)
    assert torch.allclose(both[1], mean_pooled(model, IDS[1:, :3])[0], atol=1e-5)
    assert not torch.allclose(both[1], mean_pooled(model, IDS)[1], atol=1e-5)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:  # as torch.export has it
        assert mean_pooled(model, fake.from_tensor(IDS), fake.from_tensor(MASK)).shape == (2, 16)


@pytest.mark.parametrize(("texts", "said"), [(["ab", "", "b"], "text 1"), (["a", "b", ""], "text 2"), ([], "no texts")])
def test_texts_without_a_token(tmp_path: Path, texts: list[str], said: str) -> None:
    """They have no features, whether the batch has other texts or not."""
    folder = llama(tmp_path)
    write_tokenizer(folder, ["a", "b"], ["</s>"])
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"eos_token": "</s>"}))
    assert fm.runtime.text_features(folder, ["ab", "a"], device="cpu").shape == (2, 16)
    with pytest.raises(InputError, match=said):
        fm.runtime.text_features(folder, texts, device="cpu", batch=2)


def test_a_routed_classifier(tmp_path: Path) -> None:
    """Trained on pooled features, a mixed batch gets each sample's own logits, as a list where heads differ in size."""
    live = fm.runtime.load(classifiers(tmp_path))
    generator = torch.Generator().manual_seed(0)
    low, high = (torch.randint(a, b, (40, 6), generator=generator) for a, b in ((0, 30), (34, 64)))
    with live.task(None):
        features = mean_pooled(live, torch.cat([low, high]))
    router = Router.fit(features, ["mood"] * 40 + ["spam"] * 40)
    assert router.accuracy["validation"] > 0.9
    router.save(tmp_path / "emr")
    routed = RoutedModel(live, Router.load(tmp_path / "emr"))
    ids = torch.stack([low[0], high[0], high[1], low[1]])
    with torch.no_grad():
        logits = routed(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        assert [len(row) for row in logits] == [3, 2, 2, 3]
        with live.task("spam"):
            assert torch.allclose(torch.stack(logits[1:3]), live(ids[1:3]).logits, atol=1e-5)
        same_head = routed(input_ids=ids[1:3])
        assert same_head.logits.shape == (2, 2)
