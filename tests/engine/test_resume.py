"""Merges that were stopped and go on: what was done is not done again, and nothing else is believed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from folders import content, family, read, write
from stops import Stop, hidden, stop_after

import fastmerge as fm
from fastmerge.engine import publish
from fastmerge.errors import InputError
from fastmerge.recipe.destination import partial_folder

pytestmark = pytest.mark.usefixtures("journal_every_tensor")


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("task_arithmetic", {}),
        ("emr", {}),
        ("ties", {"density": 0.3}),
        ("ties", {"scope": "global"}),
        ("fr", {}),
        ("free", {"scope": "global", "rescale": "paper"}),
    ],
    ids=["one pass", "sums", "cuts", "four passes", "filters", "experts"],
)
@pytest.mark.parametrize("stops", [[0], [0.05], [0.55], [0.97], [0.2, 0.2, 0.2, 0.2]])
def test_resume_gives_the_same_bytes(
    method: str, params: dict[str, Any], stops: list[float], models: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    """However often and wherever a merge is stopped; what was finished is not read again, nothing hidden is left."""
    chunks: list[int] = []
    whole = fm.merge(method, *models, tmp_path / "whole" / "out", params, progress=chunks.append)
    out = tmp_path / "out"
    for stop in stops:
        with pytest.raises(Stop):
            fm.merge(method, *models, out, params, resume=True, progress=stop_after(int(stop * len(chunks))))
        assert not out.exists()
    report = fm.merge(method, *models, out, params, resume=True)
    assert content(out) == content(tmp_path / "whole" / "out")
    assert set(hidden(tmp_path)) <= {".fastmerge"}
    assert report.results == whole.results
    if int(stops[0] * len(chunks)):
        assert report.bytes_read < whole.bytes_read


def test_a_journal_cut_short(models: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    """At any byte: what its whole lines say is believed, and no more."""
    whole = fm.merge("emr", *models, tmp_path / "whole" / "out")
    out, read_bytes = tmp_path / "out", []
    for cut in (0, 1, 300, 0.5, 0.9, 1.0):
        with pytest.raises(Stop):
            fm.merge("emr", *models, out, progress=stop_after(12))
        journal = partial_folder(out) / "journal"
        text = journal.read_bytes()
        journal.write_bytes(text[: int(cut * len(text)) if isinstance(cut, float) else cut])
        read_bytes.append(fm.merge("emr", *models, out, resume=True).bytes_read)
        assert content(out) == content(tmp_path / "whole" / "out")
        shutil.rmtree(out)
    assert read_bytes[:3] == [whole.bytes_read] * 3
    assert read_bytes[3] > read_bytes[4] > read_bytes[5]


def test_lost_files_are_not_believed(models: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    with pytest.raises(Stop):
        fm.merge("linear", None, models[1], tmp_path / "out", progress=stop_after(9))
    file = partial_folder(tmp_path / "out") / "content" / "model.safetensors"
    file.unlink()
    with pytest.raises(InputError, match=r"model\.safetensors: is missing"):
        fm.merge("linear", None, models[1], tmp_path / "out", resume=True)
    fm.merge("linear", None, models[1], tmp_path / "out")


def test_stopped_while_beginning_anew(
    models: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal goes first: what is half thrown away is not gone on with."""
    with pytest.raises(Stop):
        fm.merge("emr", *models, tmp_path / "out", progress=stop_after(9))
    remove = publish._remove

    def half(path: Path) -> None:
        remove(path / "unified.safetensors" if path.name == "content" else path)
        if path.name == "content":
            raise Stop

    monkeypatch.setattr(publish, "_remove", half)
    with pytest.raises(Stop):
        fm.merge("emr", *models, tmp_path / "out")
    monkeypatch.undo()
    report = fm.merge("emr", *models, tmp_path / "out", resume=True)
    assert any("began anew" in note for note in report.notes)
    fm.merge("emr", *models, tmp_path / "whole" / "out")
    assert content(tmp_path / "out") == content(tmp_path / "whole" / "out")


def touched(root: Path) -> dict[str, Any]:
    file = root / "m1" / "model.safetensors"
    os.utime(file, ns=(0, 0))
    return {}


def rewritten(root: Path) -> dict[str, Any]:
    wide = {name: tensor.float() for name, tensor in read(root / "m1").items()}
    shutil.rmtree(root / "m1")
    write(root / "m1", wide)
    return {}


def moved(root: Path) -> dict[str, Any]:
    shutil.copytree(root / "m1", root / "copy")
    return {"models": {"m0": root / "m0", "m1": root / "copy"}}


def reordered(root: Path) -> dict[str, Any]:
    return {"models": {"m1": root / "m1", "m0": root / "m0"}}


CHANGES: list[tuple[Callable[[Path], dict[str, Any]], str]] = [
    (touched, r"m1's model\.safetensors has changed \(time\)"),
    (rewritten, r"m1's model\.safetensors has changed \(size, time, header\)"),
    (moved, r"m1's model\.safetensors has changed \(path"),
    (reordered, r'models was \["m0", "m1"\], is \["m1", "m0"\]'),
    (lambda _: {"method": "magmax"}, 'method was "task_arithmetic", is "magmax"'),
    (lambda _: {"params": {"scale": 0.5}}, "scale was 0.25, is 0.5"),
    (lambda _: {"dtype": "float32"}, 'dtype was null, is "F32"'),
    (lambda _: {"tensors": [("norm*", {"scale": 1})]}, r"tensors\[0\], norm\*"),
    (lambda _: {"task_specific": ["norm*"]}, "task_specific"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_another_merge_is_not_resumed(change: Callable[[Path], dict[str, Any]], said: str, tmp_path: Path) -> None:
    """Changed inputs, another recipe: one error that says which, before any work, and what is done stays."""
    base, models = family(tmp_path, 2)
    job: dict[str, Any] = {"method": "task_arithmetic", "base": base, "models": models, "params": {"scale": 0.25}}
    with pytest.raises(Stop):
        fm.merge(**job, out=tmp_path / "out", progress=stop_after(2))
    before = content(tmp_path / ".out.partial")
    job |= change(tmp_path)
    with pytest.raises(InputError, match=said) as caught:
        fm.merge(**job, out=tmp_path / "out", resume=True, progress=stop_after(0))
    assert len(caught.value.problems) == 1
    assert content(tmp_path / ".out.partial") == before
    fm.merge(**job, out=tmp_path / "out")


def test_a_task_is_resumed(models: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    fm.merge("emr", *models, tmp_path / "emr")
    fm.task(tmp_path / "emr", "m1", tmp_path / "whole" / "task")
    with pytest.raises(Stop):
        fm.task(tmp_path / "emr", "m1", tmp_path / "task", progress=stop_after(9))
    with pytest.raises(InputError, match="another one: task was"):
        fm.task(tmp_path / "emr", "m0", tmp_path / "task", resume=True)
    fm.task(tmp_path / "emr", "m1", tmp_path / "task", resume=True)
    assert content(tmp_path / "task") == content(tmp_path / "whole" / "task")


def test_nothing_to_resume(tmp_path: Path) -> None:
    base, models = family(tmp_path, 2)
    report = fm.merge("linear", base, models, tmp_path / "out", resume=True)
    assert any("nothing to resume" in note for note in report.notes)
