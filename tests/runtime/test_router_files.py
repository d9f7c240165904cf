"""Routers trained and evaluated on files: what is learnt, what is printed, and every way in which a file is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run
from experts import experts_folder
from folders import state
from live import emr
from safetensors.torch import save_file
from torch import Tensor

import fastmerge as fm
from fastmerge.errors import InputError
from fastmerge.runtime import Router, evaluate, evaluate_router, train_router

TASKS = ["t0", "t1", "t2"]


def clusters(n: int = 90, apart: float = 6.0, seed: int = 0) -> tuple[Tensor, list[str]]:
    """Clusters around a centre per task, and the tasks."""
    labels = torch.arange(n) % 3
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))
    x[torch.arange(n), labels] += apart
    return x, [TASKS[k] for k in labels.tolist()]


def features_file(file: Path, x: Tensor, labels: Tensor | list[str] | None, tasks: list[str] | None = None) -> Path:
    named = isinstance(labels, list)
    metadata = {"labels": json.dumps(labels)} if named else {}
    metadata |= {"tasks": json.dumps(tasks)} if tasks else {}
    save_file({"features": x} | ({} if named or labels is None else {"labels": labels}), file, metadata)  # type: ignore[dict-item]
    return file


def jsonl(file: Path, labels: list[str], key: str = "label") -> Path:
    file.write_text("".join(json.dumps({"text": f"text {i}", key: own}) + "\n" for i, own in enumerate(labels)))
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return experts_folder(tmp_path / "free", state(0))


def test_one_router_from_every_form_of_labels(folder: Path, tmp_path: Path) -> None:
    """Names, places in the folder's list or in the file's own, or a JSONL file beside: the same bytes."""
    x, names = clusters()
    places = torch.tensor([TASKS.index(name) for name in names])
    turned = ["t2", "t0", "t1"]
    file = tmp_path / "f.safetensors"
    written = []
    for arguments in (
        (None, features_file(file, x, names)),
        (None, features_file(tmp_path / "g.safetensors", x, places)),
        (None, features_file(tmp_path / "h.safetensors", x, (places + 1) % 3, turned)),
        (jsonl(tmp_path / "a.jsonl", names), features_file(tmp_path / "i.safetensors", x, None)),
        (jsonl(tmp_path / "b.jsonl", names, "task"), features_file(tmp_path / "j.safetensors", x, None)),
    ):
        trained = train_router(folder, *arguments)
        assert trained.held_out is not None
        assert trained.held_out.accuracy == trained.router.accuracy["validation"] > 0.9
        written.append((folder / "router.safetensors").read_bytes())
    assert len({*written}) == 1
    assert evaluate_router(folder, None, file).accuracy > 0.9


def test_confusion_by_hand() -> None:
    """A router that always chooses the largest of two features."""
    router = Router(("a", "b"), torch.eye(2), torch.zeros(2), torch.zeros(2), torch.ones(2))
    x = torch.tensor([[2.0, 1.0], [2.0, 1.0], [1.0, 2.0], [1.0, 2.0], [2.0, 1.0]])
    found = evaluate(router, x, ["a", "a", "a", "b", "b"])
    assert found.confusion.tolist() == [[2, 1], [1, 1]]
    assert (found.samples, found.accuracy) == (5, 0.6)
    assert (found.of_task("a"), found.of_task("b")) == ((3, 2 / 3), (2, 0.5))
    alone = evaluate(router, x[:3], ["a"] * 3).to_dict()
    assert alone["tasks"]["b"] == {"samples": 0, "accuracy": None}
    assert alone["confusion"] == {"a": {"a": 2, "b": 1}, "b": {"a": 0, "b": 0}}
    with pytest.raises(InputError, match="not for c"):
        evaluate(router, x[:1], ["c"])


def test_commands(folder: Path, tmp_path: Path) -> None:
    file = features_file(tmp_path / "f.safetensors", *clusters())
    code, out, error = run("router", "train", folder, "--features", file, "--json")
    assert code == 0, error
    trained = json.loads(out)
    assert trained["features"] == 5
    assert trained["held_out"]["accuracy"] == trained["accuracy"]["validation"]
    assert trained["held_out"]["samples"] == 18
    assert set(trained["held_out"]["tasks"]) == set(TASKS)
    assert Router.load(folder).tasks == tuple(TASKS)
    said = run("router", "train", folder, "--features", file)[1]
    assert all(part in said for part in ("validation", "t0", "of 6"))
    assert json.loads(run("router", "eval", folder, "--features", file, "--json")[1])["samples"] == 90
    said = run("router", "eval", folder, "--features", file)[1]
    assert all(part in said for part in ("of 90 samples", "chosen", "t2"))
    code, out, _ = run("router", "train", folder, "--features", file, "--validation", "0", "--json")
    assert (code, json.loads(out)["held_out"]) == (0, None)


GOOD = '{"text": "x", "label": "t0"}\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["is empty"]),
        ("\n \n", ["is empty"]),
        (GOOD + "{\n", ["line 2: not valid JSON"]),
        (GOOD + "\n[1]\n", ["line 3: no JSON object"]),
        (GOOD + '{"label": "t0"}', ["line 2: has no text"]),
        (GOOD + '{"text": "x"}', ["line 2: has no single label"]),
        (GOOD + '{"text": "x", "label": 1}', ["line 2: has no single label"]),
        (GOOD + '{"text": "x", "label": "t0", "task": "t1"}', ["line 2: has no single label"]),
        (GOOD + '{"text": "\udcff", "label": "t0"}', ["line 2: not valid JSON"]),
        (GOOD, ["no samples of t1, t2"]),
        (
            GOOD + '{"text": "x", "label": "t22"}\n' * 3 + "?",
            ["line 5: not valid JSON", "line 2 and 2 more: no task 't22'; did you mean 't2'?; there are t0, t1, t2"],
        ),
    ],
)
def test_bad_texts(text: str, said: list[str], folder: Path, tmp_path: Path) -> None:
    """Each problem once, with the number of its line, beside that of a model without a tokenizer; and exit code 2."""
    (tmp_path / "d.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    code, _, error = run("router", "train", folder, "--data", tmp_path / "d.jsonl")
    assert (code, error.count("error:")) == (2, len(said) + 1), error
    assert all(part in error and "d.jsonl" in error for part in said), error
    assert not (folder / "router.json").exists()


X, NAMES = clusters(6)


@pytest.mark.parametrize(
    ("tensors", "metadata", "said"),
    [
        ({"feature": X}, {}, r"must hold `features`, floats \[N, D\]; it holds feature F32 \[6, 5\]"),
        ({"features": X[0]}, {}, r"features F32 \[5\]"),
        ({"features": X[:0]}, {"labels": []}, "is empty"),
        ({"features": X * torch.nan}, {"labels": NAMES}, "NaN or infinity"),
        ({"features": X}, {}, "has no labels"),
        ({"features": X}, {"labels": NAMES[1:]}, "features of 6 samples and 5 labels"),
        ({"features": X}, {"labels": {"a": 1}}, "labels in its metadata must be a JSON list"),
        ({"features": X}, {"labels": [*NAMES[:5], "t"]}, "sample 5: no task 't'; did you mean 't[012]'"),
        ({"features": X, "labels": torch.ones(6)}, {}, r"labels must be I64 \[6\], they are F32"),
        ({"features": X, "labels": torch.arange(6)}, {}, "sample 3: label 3 is of no task; expected 0 to 2"),
        ({"features": X, "labels": torch.arange(6) % 2}, {"tasks": ["t0", "x1"]}, "sample 1 and 2 more: no task 'x1'"),
    ],
)
def test_bad_features(
    tensors: dict[str, Tensor], metadata: dict[str, Any], said: str, folder: Path, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "f.safetensors", {key: json.dumps(value) for key, value in metadata.items()})
    with pytest.raises(InputError, match=said):
        train_router(folder, None, tmp_path / "f.safetensors")


def test_all_problems_at_once(folder: Path, tmp_path: Path) -> None:
    """Another task list, another width and an unknown label are told together; so is what two files disagree on."""
    x, names = clusters()
    train_router(folder, None, features_file(tmp_path / "f.safetensors", x, names))
    wide = features_file(tmp_path / "w.safetensors", torch.ones(2, 7), ["t0", "t9"])
    with pytest.raises(InputError, match="no task 't9'"):
        evaluate_router(folder, None, wide)
    two = features_file(tmp_path / "two.safetensors", torch.ones(2, 7), None)
    with pytest.raises(InputError) as caught:
        evaluate_router(folder, jsonl(tmp_path / "d.jsonl", ["t0"]), two)
    assert [text.split(": ")[1][:12] for text in caught.value.problems] == ["has features", "its features"]
    assert "has features of 2 samples" in str(caught.value)
    assert "its features have 7 numbers, the router was trained on 5" in str(caught.value)
    Router.fit(x, [name.replace("2", "3") for name in names]).save(tmp_path / "other")
    for file in (tmp_path / "other").iterdir():
        file.replace(folder / file.name)
    code, _, error = run("router", "eval", folder, "--features", wide)
    assert (code, error.count("error:")) == (2, 2)
    assert "it is for the tasks t0, t1, t3" in error


def test_what_is_not_there(folder: Path, tmp_path: Path) -> None:
    for arguments, count, said in (
        (["train", tmp_path], 1, "has neither emr.json nor experts.json"),
        (["train", folder], 1, "pass a file of texts"),
        (["train", folder, "--data", tmp_path / "no.jsonl"], 2, "no.jsonl: cannot be read"),
        (["eval", folder, "--features", features_file(tmp_path / "f.safetensors", *clusters())], 1, "has no router"),
    ):
        code, _, error = run("router", *arguments)
        assert (code, error.count("error:"), said in error) == (2, count, True), error


def test_an_emr_artefact(tmp_path: Path) -> None:
    """Its tasks are labels as well; tasks come in the folder's order, not in that of the file."""
    x, names = clusters()
    called = dict(zip(TASKS, ["law", "math", "code"], strict=True))
    train_router(emr(tmp_path), None, features_file(tmp_path / "f.safetensors", x, [called[n] for n in names]))
    assert Router.load(tmp_path / "emr").tasks == ("math", "code", "law")


def test_texts_without_transformers(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"transformers cannot be imported.*--features"):
        train_router(folder, jsonl(tmp_path / "d.jsonl", TASKS * 2))


def bert(root: Path) -> Path:
    """Experts on a BERT whose tokenizer knows six words for each task."""
    transformers: Any = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"{task}w{i}" for task in TASKS for i in range(6))]
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.BertModel(config)
    folder = experts_folder(root / "bert", dict(model.state_dict()), copied=[])
    config.architectures = ["BertModel"]
    config.save_pretrained(folder)
    (root / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(root / "vocab.txt"), do_basic_tokenize=False).save_pretrained(folder)
    return folder


def test_texts_through_the_model(tmp_path: Path) -> None:
    """Trained on texts, the router tells new ones apart, whatever the batches; a text has the features it has alone."""
    folder = bert(tmp_path)
    chance = torch.Generator().manual_seed(0)

    def texts(n: int) -> list[dict[str, str]]:
        lengths = torch.randint(2, 9, (n,), generator=chance).tolist()
        words = [torch.randint(0, 6, (length,), generator=chance).tolist() for length in lengths]
        return [
            {"text": " ".join(f"{TASKS[i % 3]}w{w}" for w in own), "label": TASKS[i % 3]} for i, own in enumerate(words)
        ]

    for name, n in (("train", 90), ("test", 30)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, texts(n))))
    code, _, error = run("router", "train", folder, "--data", tmp_path / "train.jsonl", "--device", "cpu")
    assert code == 0, error
    found = [evaluate_router(folder, tmp_path / "test.jsonl", batch=batch, device="cpu") for batch in (1, 7)]
    assert torch.equal(found[0].confusion, found[1].confusion)
    assert found[0].accuracy > 0.8
    both = fm.runtime.text_features(folder, ["t0w1 t0w2 t0w3", "t1w1"], device="cpu")
    assert torch.allclose(both[1:], fm.runtime.text_features(folder, ["t1w1"], device="cpu"), atol=1e-5)
    with pytest.raises(InputError, match="device 'gpu9' cannot be used"):
        fm.runtime.text_features(folder, ["t1w1"], device="gpu9")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    (tmp_path / "odd.jsonl").write_text('{"text": "t0w1", "label": "t7"}')
    with pytest.raises(InputError) as caught:
        train_router(folder, tmp_path / "odd.jsonl", validation=2, device="gpu9")
    said = ("validation is 2", "no task 't7'", "has no tokenizer", "'gpu9' cannot be used")
    assert all(part in text for part, text in zip(said, caught.value.problems, strict=True))
    with pytest.raises(InputError) as caught:
        evaluate_router(folder, tmp_path / "odd.jsonl", device="gpu9")
    assert all(part in text for part, text in zip(said[1:], caught.value.problems, strict=True))
    with pytest.raises(InputError, match="has no tokenizer"):
        fm.runtime.text_features(folder, ["t1w1"])
