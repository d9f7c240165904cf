"""Models and records of tasks, verified against what they are of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from folders import family
from verified import JOBS, flip, job, rewrite

import fastmerge as fm
from fastmerge.doctor import describe
from fastmerge.errors import InputError, VerifyError
from fastmerge.formats import checkpoint


def other_head(root: Path, _: str) -> str:
    flip(root / "heads" / "tasks" / "m1" / "model.safetensors", "head.weight")
    return r"tensor 'head.weight' is not what its inputs give"


def other_scale(root: Path, kind: str) -> str:
    file = root / "heads" / f"{'emr' if kind == 'emr' else 'experts'}.json"
    record = json.loads(file.read_text())
    if kind == "emr":
        record["rescalers"][1] *= 2
    else:
        record["experts"]["m1"]["scale"] *= 2
    file.write_text(json.dumps(record))
    return r"is not what its inputs give"


def other_output(root: Path, _: str) -> str:
    flip(root / "out" / "model.safetensors", "embed.weight", 1)
    return r"tensor 'embed.weight' is not what its inputs give \(first at byte 1\)"


def other_task(root: Path, _: str) -> str:
    file = root / "out" / "fastmerge.json"
    file.write_text(file.read_text().replace('"task": "m1"', '"task": "m2"'))
    return "m2/model.safetensors|experts/m2|not what was merged"


def test_a_model_is_described_whose_record_cannot_be_read(tmp_path: Path) -> None:
    base, _ = family(tmp_path)
    (base / "fastmerge.json").write_text("{}")
    assert "fastmerge.json: method: Field required" in describe(str(base))["notes"]


@pytest.mark.parametrize("change", [other_head, other_scale, other_output, other_task])
@pytest.mark.parametrize("kind", ["emr", "free"])
def test_one_tasks_model(kind: str, change: Callable[[Path, str], str], tmp_path: Path) -> None:
    """Its record says of which artefact it is; it verifies, with hashes too, until one of the two changes."""
    arguments = job("heads", tmp_path) | ({} if kind == "emr" else JOBS["free, heads"])
    fm.merge(**arguments, out=tmp_path / "heads")
    fm.task(tmp_path / "heads", "m1", tmp_path / "out")
    assert describe(str(tmp_path / "out"))["task"] == "m1"
    assert describe(str(tmp_path / "out"))["made_of"]["artefact"] == str(tmp_path / "heads")
    record = (tmp_path / "out" / "fastmerge.json").read_bytes()
    for samples in (2, None):
        found = fm.verify(tmp_path / "out", samples=samples)
        assert [check.what.partition(" ")[2] or check.what for check in found.checks] == ["inputs", "files", "blocks"]
        assert not found.notes
    shutil.move(tmp_path / "base", tmp_path / "moved")
    shutil.move(tmp_path / "heads", tmp_path / "merged")
    with pytest.raises(InputError, match=r"--model artefact=PATH"):
        fm.verify(tmp_path / "out")
    assert (tmp_path / "out" / "fastmerge.json").read_bytes() == record
    moved = {"base": tmp_path / "moved"} if kind == "emr" else {}
    fm.verify(tmp_path / "out", models={"artefact": tmp_path / "merged"}, **moved)
    shutil.move(tmp_path / "moved", tmp_path / "base")
    shutil.move(tmp_path / "merged", tmp_path / "heads")
    said = change(tmp_path, kind)
    with pytest.raises((VerifyError, InputError), match=said):
        fm.verify(tmp_path / "out", samples=None)


def test_records_of_tasks_may_be_as_large_as_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have numbers for every tensor and task: 67 MB of 36,000 tensors and 32 tasks."""
    fm.merge(**job("emr", tmp_path), out=tmp_path / "emr")
    monkeypatch.setattr(checkpoint, "JSON_LIMIT", 1500)
    assert (tmp_path / "emr" / "emr.json").stat().st_size > 1500
    fm.task(tmp_path / "emr", "m1", tmp_path / "out")
    monkeypatch.setattr(checkpoint, "JSON_LIMIT", (tmp_path / "emr" / "fastmerge.json").stat().st_size)
    fm.verify(tmp_path / "emr")
    with (tmp_path / "emr" / "emr.json").open("a") as file:
        file.write(" " * 2_000_000)
    with pytest.raises(InputError, match=r"emr\.json: larger than \d+ bytes"):
        fm.task(tmp_path / "emr", "m1", tmp_path / "again")


def test_hashes_of_one_tasks_model(tmp_path: Path) -> None:
    fm.merge(**job("emr", tmp_path), out=tmp_path / "emr")
    fm.task(tmp_path / "emr", "m1", tmp_path / "out")
    fm.verify(tmp_path / "out", hashes=True)
    record = json.loads((tmp_path / "out" / "fastmerge.json").read_text())
    files = [*record["files"], *record["base"]["files"], *record["models"]["artefact"]["files"]]
    assert [file["file"] for file in files] == [*["model.safetensors"] * 2, "unified.safetensors", "masks.safetensors"]
    assert all(len(file["sha256"]) == 64 for file in files)
    assert files[0]["sha256"] in (tmp_path / "out" / "README.md").read_text()
    flip(tmp_path / "emr" / "masks.safetensors", "embed.weight")
    with pytest.raises(VerifyError, match=r"masks\.safetensors: has changed: its hash"):
        fm.verify(tmp_path / "out", samples=0)


def test_a_record_of_a_task_without_its_artefact(tmp_path: Path) -> None:
    fm.merge(**job("emr", tmp_path), out=tmp_path / "emr")
    fm.task(tmp_path / "emr", "m1", tmp_path / "out")
    file = tmp_path / "out" / "fastmerge.json"
    file.write_text(file.read_text().replace('"artefact"', '"model"'))
    with pytest.raises(InputError, match="names no artefact"):
        fm.verify(tmp_path / "out")


def swapped_tasks(out: Path) -> str:
    rewrite(out / "emr.json", lambda record: record["tasks"].reverse())
    return r"emr\.json: its tasks are not those of the merge"


def swapped_experts(out: Path) -> str:
    def swap(record: dict[str, Any]) -> None:
        one, other = record["experts"]["m0"], record["experts"]["m1"]
        one["file"], other["file"] = other["file"], one["file"]

    rewrite(out / "experts.json", swap)
    return r"experts\.json: its experts are not those of the merge"


def an_alias(out: Path) -> str:
    rewrite(out / "experts.json", lambda record: record["aliases"].update({"norm.weight": ["layers.1.weight"]}))
    return r"experts\.json: its aliases are not those of the merge"


@pytest.mark.parametrize(("name", "change"), [("emr", swapped_tasks), ("free", swapped_experts), ("free", an_alias)])
def test_which_task_is_whose(name: str, change: Callable[[Path], str], tmp_path: Path) -> None:
    fm.merge(**job(name, tmp_path), out=tmp_path / "out")
    said = change(tmp_path / "out")
    with pytest.raises(VerifyError, match=said):
        fm.verify(tmp_path / "out", samples=1)
