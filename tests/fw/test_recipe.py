"""`fastmerge fw`: from a recipe, checkpoints and texts to a folder; resumed; every way in which a recipe is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import content, read
from typer.testing import CliRunner

import fastmerge as fm
from fastmerge.cli import app
from fastmerge.fw.run import checkpoint_of, run

transformers = pytest.importorskip("transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "fine", "bad", "poor", "film", "book"]
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": len(WORDS),
    "initializer_range": 0.5,
}
TEXTS = [("good film", "yes"), ("fine book", "yes"), ("bad film", "no"), ("poor book", "no"), ("a good book", "yes")]


def call(*arguments: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["fw", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def family(root: Path, kind: str) -> dict[str, Path]:
    """A base with a tokenizer, and three others of its kind."""
    root.mkdir(exist_ok=True)
    (root / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizer(str(root / "vocab.txt"), do_basic_tokenize=False)
    folders = {}
    for seed, name in enumerate(("base", "one", "two", "three")):
        torch.manual_seed(seed)
        if kind == "classifier":
            config = transformers.BertConfig(**SMALL, intermediate_size=24, id2label={0: "no", 1: "yes"})
            model = transformers.BertForSequenceClassification(config)
        else:
            model = transformers.LlamaForCausalLM(
                transformers.LlamaConfig(**SMALL, intermediate_size=24, tie_word_embeddings=True)
            ).bfloat16()
        folders[name] = root / name
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


def texts(file: Path, labels: bool = True) -> Path:
    lines = [{"text": text} | ({"label": label} if labels else {}) for text, label in TEXTS]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def recipe(root: Path, **changes: Any) -> Path:
    """Paths are relative to the recipe."""
    texts(root / "texts.jsonl")
    content: dict[str, Any] = {"model": "base", "pool": ["one", "two", "three"], "data": {"all": "texts.jsonl"}}
    content |= {"batch_size": 2, "parameters": {"steps": 3}}
    (root / "fw.yaml").write_text(json.dumps(content | changes))
    return root / "fw.yaml"


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("language", {}),
        ("language", {"parameters": {"variant": "soft", "lmo": "layer", "layers": "block", "steps": 2}}),
        ("classifier", {"loss": "cross_entropy"}),
        ("classifier", {"loss": "entropy", "samples": 3}),
    ],
    ids=["language", "soft", "cross-entropy", "entropy"],
)
def test_from_recipe_to_folder(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """What is written computes as the model that was optimised, and is made again from its record."""
    family(tmp_path, kind)
    code, printed, error = call(recipe(tmp_path, **changes), "--out", tmp_path / "out", "--draw", tmp_path / "run.png")
    assert code == 0, error
    assert "step 0: loss" in printed
    assert "towards" in printed
    assert (tmp_path / "run.png").is_file()
    record = fm.fw.Record.read(tmp_path / "out")
    assert record.loss is not None
    assert record.loss < record.steps[0].loss
    assert not checkpoint_of(tmp_path / "out").exists()
    loader = (
        transformers.AutoModelForCausalLM if kind == "language" else transformers.AutoModelForSequenceClassification
    )
    model = loader.from_pretrained(tmp_path / "out")
    again = fm.fw.rebuild(tmp_path / "out")
    assert all(torch.equal(t, again[n]) for n, t in read(tmp_path / "out").items())
    assert {n for n, _ in model.named_parameters()} <= again.keys()
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").vocab_size == len(WORDS)


def test_resumed(tmp_path: Path) -> None:
    """A run that was stopped after a step goes on to the same bytes; its checkpoint is gone at the end."""
    family(tmp_path, "language")
    file, out = recipe(tmp_path), tmp_path / "out"
    run(file, out)

    class Stop(BaseException):
        pass

    def stop(_: fm.fw.Step) -> None:
        raise Stop

    with pytest.raises(Stop):
        run(file, tmp_path / "again", callback=stop)
    assert checkpoint_of(tmp_path / "again").is_file()
    code, printed, _ = call(file, "--out", tmp_path / "again", "--resume", "--json")
    assert code == 0
    steps = json.loads(printed)["run"]["steps"]
    assert [step["number"] for step in steps] == [*range(len(steps))]
    assert (again := content(tmp_path / "again"))["model.safetensors"] == content(out)["model.safetensors"]
    assert again.keys() == content(out).keys()
    assert not checkpoint_of(tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modle": "x"}, ["there is no 'modle' here; did you mean 'model'"]),
        ({"pool": {}}, ["pool"]),
        ({"pool": ["a/x", "b/x"]}, ["members are called the same"]),
        ({"loss": "entropie"}, ["loss is 'entropie'", "did you mean 'entropy'"]),
        ({"data": {"all": {"path": "texts.jsonl", "wieght": 2}}}, ["data.all.wieght", "did you mean 'weight'"]),
        ({"parameters": {"stepps": 1}}, ["parameters.stepps", "did you mean 'steps'"]),
        ({"parameters": {"variant": "soft", "top_k": 0}}, ["parameters.top_k: is 0"]),
        ({"data": {"all": "none.jsonl"}}, ["none.jsonl: cannot be read"]),
        ({"data": {"all": "empty.jsonl"}}, ["empty.jsonl: is empty"]),
        ({"data": {"all": "bad.jsonl"}}, ["line 1: has no text", "line 2: not valid JSON"]),
        ({"data": {"all": "bad.jsonl"}, "loss": "cross_entropy"}, ["line 3: its label 'yess'", "did you mean 'yes'"]),
        ({"model": "nowhere"}, ["nowhere does not exist"]),
        ({"pool": ["one", "other"]}, ["other", "skip_misfits: true"]),
        ({"device": "gpu9"}, ["device 'gpu9' cannot be used"]),
    ],
    ids=str,
)
def test_wrong_recipes(changes: dict[str, Any], said: list[str], tmp_path: Path) -> None:
    """One clear error each, before any work, and no output."""
    family(tmp_path, "classifier")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bad.jsonl").write_text('{"label": "yes"}\n?\n{"text": "x", "label": "yess"}\n')
    code, _, error = call(recipe(tmp_path, **{"loss": "entropy"} | changes), "--out", tmp_path / "out")
    assert code == 2
    for text in said:
        assert text in error
    assert not (tmp_path / "out").exists()
    assert not checkpoint_of(tmp_path / "out").exists()


def test_outputs_are_looked_at_first(tmp_path: Path) -> None:
    family(tmp_path, "language")
    (tmp_path / "out").mkdir()
    code, _, error = call(recipe(tmp_path), "--out", tmp_path / "out", "--draw", tmp_path / "x.jpg")
    assert (code, "call it x.png" in error) == (2, True)
    code, _, error = call(recipe(tmp_path), "--out", tmp_path / "out")
    assert (code, "exists already" in error) == (2, True)
    code, _, error = call(recipe(tmp_path), "--out", tmp_path / "one")
    assert (code, "would overwrite the input" in error) == (2, True)
