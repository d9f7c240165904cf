"""Embeddings and heads of different lengths."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import added, lora, write_adapter
from folders import near, read, state, write
from tensors import assert_same_bits
from torch import Tensor
from typer.testing import CliRunner

import fastmerge as fm
from fastmerge.cli import app
from fastmerge.errors import InputError
from fastmerge.ops import BLOCK
from fastmerge.recipe import memory

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def model(root: Path, name: str, embed: Any, head: Any = None, vocab: int = 0, **files: str) -> Path:
    tensors = {EMBED: torch.tensor(embed), "norm.weight": torch.ones(2)}
    tensors |= {} if head is None else {HEAD: torch.tensor(head)}
    config = {"model_type": "test", "vocab_size": vocab or len(embed), "text_config": {"vocab_size": len(embed)}}
    folder = write(root / name, tensors, config)
    for file, text in files.items():
        (folder / f"{file}.json").write_text(text)
    return folder


def merged(root: Path, method: str, base: Path | None, models: Mapping[str, Path], **options: Any) -> dict[str, Tensor]:
    fm.merge(method, base, models, root / "out", **options)
    assert fm.verify(root / "out", samples=None).problems == []
    return read(root / "out")


def test_rows_beyond_base_are_dropped(tmp_path: Path) -> None:
    base = model(tmp_path, "base", [[0.0, 0], [0, 0]], [[1.0, 1], [1, 1]])
    longer = model(tmp_path, "longer", [[1.0, 2], [3, 4], [5, 6]], [[2.0, 1], [1, 1], [9, 9]])
    out = merged(tmp_path, "task_arithmetic", base, {"longer": longer}, vocab="base")
    assert out[EMBED].tolist() == [[1, 2], [3, 4]]
    assert out[HEAD].tolist() == [[2, 1], [1, 1]]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 2


def test_a_row_that_one_model_has_stays_its_own(tmp_path: Path) -> None:
    """And base lends what another model lacks, so that it changes nothing there."""
    base = model(tmp_path, "base", [[1.0, 1], [1, 1]])
    longer = model(tmp_path, "longer", [[2.0, 1], [1, 1], [5, 6]], tokenizer='{"longer": 1}', tokenizer_config="{}")
    shorter = model(tmp_path, "shorter", [[1.0, 3]])
    models = {"longer": longer, "shorter": shorter}
    out = merged(tmp_path, "task_arithmetic", base, models, vocab="pad", dtype="float64")
    assert out[EMBED].tolist() == [[2, 3], [1, 1], [5, 6]]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["vocab_size"], config["text_config"]["vocab_size"], config["torch_dtype"]) == (3, 3, "float64")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"longer": 1}'


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_a_row_that_base_lacks_is_the_mean_of_those_that_have_it(method: str, tmp_path: Path) -> None:
    base = model(tmp_path, "base", [[1.0, 1]])
    models = {
        "one": model(tmp_path, "one", [[1.0, 1], [2, 4]]),
        "two": model(tmp_path, "two", [[1.0, 1], [4, 0]]),
        "three": model(tmp_path, "three", [[1.0, 1]]),
    }
    assert merged(tmp_path, method, base, models, vocab="pad")[EMBED].tolist() == [[1, 1], [3, 2]]


@pytest.mark.parametrize("vocab", ["base", "pad"])
def test_of_a_model_that_an_adapter_makes(vocab: str, tmp_path: Path) -> None:
    """Its embedding has the adapter's change in every row that is taken, as that of the model written out."""
    base = model(tmp_path, "base", [[1.0, 1], [1, 1]])
    longer = model(tmp_path, "longer", [[2.0, 1], [1, 1], [5, 6]])
    factors = lora({"model.embed_tokens": (3, 2)}, 2, 0)
    up, down = factors["model.embed_tokens.lora_B.weight"], factors["model.embed_tokens.lora_A.weight"]
    stored = {"model.embed_tokens.lora_embedding_A": up.T, "model.embed_tokens.lora_embedding_B": down.T}
    adapter = write_adapter(tmp_path / "adapter", stored, r=2, lora_alpha=3, target_modules=["embed_tokens"])
    whole = model(tmp_path, "whole", added(read(longer)[EMBED], up, down, 1.5).tolist())
    expected = merged(tmp_path / "written", "task_arithmetic", base, {"m": whole}, vocab=vocab)
    found = merged(tmp_path / "computed", "task_arithmetic", base, {"m": Path(f"{longer}+{adapter}")}, vocab=vocab)
    assert_same_bits(found[EMBED], expected[EMBED], EMBED)


def test_without_a_base(tmp_path: Path) -> None:
    models = {"one": model(tmp_path, "one", [[2.0, 2]]), "two": model(tmp_path, "two", [[4.0, 0], [6, 8]])}
    assert merged(tmp_path, "linear", None, models, vocab="pad")[EMBED].tolist() == [[3, 1], [6, 8]]
    fm.merge("linear", None, models, tmp_path / "short", vocab="base")
    assert read(tmp_path / "short")[EMBED].tolist() == [[3, 1]]


@pytest.mark.parametrize("vocab", ["base", "pad"])
def test_a_longer_base_lends_its_rows(vocab: str, tmp_path: Path) -> None:
    base = model(tmp_path, "base", [[1.0, 1], [7, 8]])
    models = {"short": model(tmp_path, "short", [[3.0, 1]])}
    out = merged(tmp_path, "ties", base, models, params={"density": 1}, vocab=vocab)
    assert out[EMBED].tolist() == [[3, 1], [7, 8]]


def test_a_tied_head_stands_for_embeddings(tmp_path: Path) -> None:
    base = model(tmp_path, "base", [[1.0, 1], [7, 8]])
    tied = write(tmp_path / "tied", {HEAD: torch.tensor([[3.0, 1]]), "norm.weight": torch.ones(2)})
    assert merged(tmp_path, "linear", base, {"tied": tied}, vocab="base")[EMBED].tolist() == [[3, 1], [7, 8]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("vocab", ["base", "pad"])
def test_streams_as_resized_models_do(
    vocab: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, in chunks that begin within rows, and with methods that look at whole tensors."""
    monkeypatch.setattr(memory, "MAX_CHUNK", BLOCK)
    base = state(0, dtype, {EMBED: (900, 150), "norm.weight": (8,)})
    long = state(1, dtype, {EMBED: (1000, 150), "norm.weight": (8,)})
    models = {"long": long, "short": {n: t[:500] for n, t in near(base, 2).items()}, "even": near(base, 3)}
    folders = {name: write(tmp_path / name, tensors) for name, tensors in models.items()}
    fm.merge("ties", write(tmp_path / "base", base), folders, tmp_path / "out", vocab=vocab)
    rows = 900 if vocab == "base" else 1000
    whole = torch.cat([base[EMBED], long[EMBED][900:]])[:rows]
    alike = {n: m | {EMBED: torch.cat([m[EMBED][:rows], whole[len(m[EMBED]) :]])} for n, m in models.items()}
    expected = fm.merge_state_dicts("ties", base | {EMBED: whole}, alike).state_dict
    for name, tensor in read(tmp_path / "out").items():
        assert_same_bits(tensor, expected[name], name)


def test_an_artefact_keeps_to_base(tmp_path: Path) -> None:
    base = model(tmp_path, "base", [[1.0, 1]])
    models = {"longer": model(tmp_path, "longer", [[2.0, 1], [5, 6]])}
    with pytest.raises(InputError, match=r"emr: task vectors are stored against base.*pass --vocab base"):
        fm.plan("emr", base, models, vocab="pad")
    fm.merge("emr", base, models, tmp_path / "out", vocab="base")
    fm.task(tmp_path / "out", "longer", tmp_path / "task")
    assert read(tmp_path / "task")[EMBED].tolist() == [[2, 1]]


def test_what_is_said_where_nothing_is(tmp_path: Path) -> None:
    """Once, with the option's name; and of a word that there is not."""
    base = model(tmp_path, "base", [[1.0, 1]])
    models = {"longer": model(tmp_path, "longer", [[2.0, 1], [5, 6]])}
    with pytest.raises(InputError, match=r"vocabulary was resized; pass --vocab base .*--vocab pad"):
        fm.plan("linear", base, models)
    with pytest.raises(InputError, match="unknown vocab 'bas'; did you mean 'base'"):
        fm.plan("linear", base, models, vocab="bas")  # type: ignore[arg-type]
    recipe = {"method": "linear", "base": str(base), "models": {"longer": str(models["longer"])}}
    with pytest.raises(InputError, match=r"resized; (give|pass) vocab: base"):
        fm.run(recipe, tmp_path / "out")
    fm.run(recipe | {"vocab": "pad"}, tmp_path / "out")
    arguments = ["merge", "linear", "--base", str(base), "--model", f"longer={models['longer']}", "--vocab", "pad"]
    assert CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "cli")]).exit_code == 0
    assert read(tmp_path / "cli")[EMBED].tolist() == read(tmp_path / "out")[EMBED].tolist() == [[2, 1], [5, 6]]
