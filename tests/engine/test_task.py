"""One task's model written from a folder of experts, or an EMR artefact: what the live model has, to the bit."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from experts import add_experts, sparse
from folders import content, near, read, write
from live import TASKS, Net, emr, free, stored
from safetensors.torch import load_file, save_file
from tensors import BF16, F16, F32, assert_same_bits
from torch import nn

import fastmerge as fm
from fastmerge.engine import task as module
from fastmerge.errors import InputError, MergeError
from fastmerge.ops import BLOCK


def assert_is_live(written: Path, live: nn.Module) -> None:
    tensors = read(written)
    for name, expected in live.state_dict().items():
        if name in tensors:
            assert_same_bits(tensors[name], expected, name)


@pytest.mark.parametrize("kind", [emr, free], ids=["emr", "experts"])
@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize("chunk", [BLOCK, 1 << 21])
def test_is_the_live_model(
    kind: Callable[..., Path], dtype: torch.dtype, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit and in any chunks; the same bytes every time; and it is an ordinary checkpoint."""
    monkeypatch.setattr(module, "MAX_CHUNK", chunk)
    folder = kind(tmp_path, dtype)
    live = fm.runtime.load(folder, Net(9, dtype))
    for task in TASKS:
        out = tmp_path / "written" / task
        begin = time.perf_counter()
        report = fm.task(folder, task, out)
        assert 0 < report.seconds < time.perf_counter() - begin
        live.set_task(task)
        assert_is_live(out, live)
        assert set(read(out)) == set(stored(Net(0, dtype)))
        assert not list(out.glob("*expert*")) + list(out.glob("emr.json"))
        assert report.parameters == sum(t.numel() for t in read(out).values())
        fm.task(folder, task, tmp_path / "again" / task)
        assert content(tmp_path / "again" / task) == content(out)
    assert fm.diff(out, tmp_path / "again" / TASKS[0]).total.change


@pytest.mark.parametrize("values", [BF16, F32], ids=str)
def test_values_of_another_dtype(values: torch.dtype, tmp_path: Path) -> None:
    """Added in the wider of the two types, and rounded once."""
    state = stored(Net(0, F16))
    experts = {"one": sparse(state, 1, dtype=values)}
    folder = add_experts(write(tmp_path / "free", state), experts, scales={"one": 1 / 3})
    fm.task(folder, "one", tmp_path / "one")
    assert_is_live(tmp_path / "one", fm.runtime.load(folder, Net(1, F16), task="one"))
    where, delta = experts["one"]["norm.weight"]
    expected = (state["norm.weight"].float() + torch.tensor(1 / 3) * delta.float()).to(F16)
    assert_same_bits(
        read(tmp_path / "one")["norm.weight"], torch.where(where, expected, state["norm.weight"]), "by hand"
    )


def test_tied_names_and_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone that stores the tied name too gets the expert under both; shards have their index."""
    state = stored(Net(0))
    tied = {**state, "out.weight": state["embed.weight"].clone()}
    folder = add_experts(
        write(tmp_path / "free", tied), {"one": sparse(state, 1)}, aliases={"embed.weight": ["out.weight"]}
    )
    plan_layout = module.plan_layout
    monkeypatch.setattr(module, "plan_layout", lambda tensors: plan_layout(tensors, limit=150_000))
    fm.task(folder, "one", tmp_path / "one")
    assert len(list((tmp_path / "one").glob("model-*.safetensors"))) == 2
    assert set(json.loads((tmp_path / "one" / "model.safetensors.index.json").read_text())["weight_map"]) == set(tied)
    written = read(tmp_path / "one")
    assert_same_bits(written["out.weight"], written["embed.weight"], "tied")
    assert_is_live(tmp_path / "one", fm.runtime.load(folder, Net(1), task="one"))


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    """Experts with heads of their own sizes and configurations; one task has the backbone's."""
    state = {"body.weight": torch.randn(40, 8), "head.weight": torch.ones(5, 8), "ids": torch.arange(3)}
    own = {f"t{k}": {"head.weight": torch.full((k + 2, 8), float(k))} for k in range(2)}
    experts = {f"t{k}": sparse({"body.weight": state["body.weight"]}, k) for k in range(3)}
    configs = {task: {"num_labels": len(head["head.weight"])} for task, head in own.items()}
    folder = write(tmp_path / "free", state, {"num_labels": 5})
    (folder / "tokenizer.json").write_text("{}")
    return add_experts(folder, experts, heads=own, configs=configs, replaced=["head.weight"])


def test_heads_come_back_with_their_task(heads: Path, tmp_path: Path) -> None:
    for task, size in {"t0": 2, "t1": 3, "t2": 5}.items():
        out = tmp_path / task
        fm.task(heads, task, out)
        assert read(out)["head.weight"].shape == (size, 8)
        assert torch.equal(read(out)["ids"], torch.arange(3))
        assert json.loads((out / "config.json").read_text()) == {"num_labels": size}
        assert sorted(f.name for f in out.iterdir()) == [
            "README.md",
            "config.json",
            "fastmerge.json",
            "model.safetensors",
            "tokenizer.json",
        ]


def cut(folder: Path) -> str:
    file = folder / "experts" / "math.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    return "math.safetensors.*cut off"


def beyond(folder: Path) -> str:
    file = folder / "experts" / "math.safetensors"
    parts = load_file(file)
    parts["up.weight/offsets"] = torch.cat([parts["up.weight/offsets"][:-1], torch.tensor([65_535]).to(torch.uint16)])
    save_file(parts, file)
    return "'up.weight': its offsets go beyond"


def other_backbone(folder: Path) -> str:
    state = read(folder)
    save_file(dict(state) | near({"norm.weight": state["norm.weight"]}, 5), folder / "model.safetensors")
    return "not the backbone"


def misrecorded_tie(folder: Path) -> str:
    record = json.loads((folder / "experts.json").read_text())
    record["aliases"] = {"norm.weight": ["embed.weight"]}
    (folder / "experts.json").write_text(json.dumps(record))
    return "'embed.weight' is recorded as tied to 'norm.weight'"


@pytest.mark.parametrize("damage", [cut, beyond, other_backbone, misrecorded_tie])
def test_damaged_folders(damage: Callable[[Path], str], tmp_path: Path) -> None:
    """One clear error before any work, and nothing is written."""
    folder = free(tmp_path)
    said = damage(folder)
    with pytest.raises(InputError, match=said) as caught:
        fm.task(folder, "math", tmp_path / "out")
    assert len(caught.value.problems) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["free"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "maths"}, "did you mean 'math'"),
        ({"base": "other"}, "not the base model"),
        ({"out": "free"}, "would overwrite the input"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], said: str, tmp_path: Path) -> None:
    write(tmp_path / "base", stored(Net(0)))
    write(tmp_path / "other", stored(Net(1)))
    folder = free(tmp_path, base=tmp_path / "base")
    values = {"name": "math", "out": "out", "base": "base"} | arguments
    with pytest.raises(InputError, match=said):
        fm.task(folder, values["name"], tmp_path / values["out"], base=tmp_path / values["base"])
    assert set(read(folder)) == set(stored(Net(0)))


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    """An expert that changes meanwhile leaves nothing; a stopped call goes on to the same bytes."""
    folder = free(tmp_path)

    class Stop(BaseException):
        pass

    def stop(_: int) -> None:
        raise Stop

    def touch(_: int) -> None:
        shutil.copystat(folder / "config.json", folder / "experts" / "math.safetensors")
        (folder / "experts" / "math.safetensors").touch()

    with pytest.raises(MergeError, match="has changed"):
        fm.task(folder, "math", tmp_path / "out", progress=touch)
    with pytest.raises(Stop):
        fm.task(folder, "math", tmp_path / "out", progress=stop)
    assert not (tmp_path / "out").exists()
    fm.task(folder, "math", tmp_path / "out", resume=True)
    fm.task(folder, "math", tmp_path / "whole" / "out")
    assert content(tmp_path / "out") == content(tmp_path / "whole" / "out")
