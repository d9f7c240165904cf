"""How an output takes its place: whole or not at all, and nothing of others is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from folders import content, family, read, state
from stops import Stop, hidden, stop_after

import fastmerge as fm
from fastmerge.engine import publish
from fastmerge.errors import InputError

pytestmark = pytest.mark.usefixtures("journal_every_tensor")


def test_two_merges_into_one_folder(tmp_path: Path) -> None:
    """The second is refused while the first is at work, and does not disturb it."""
    base, models = family(tmp_path, 2)
    refused = []

    def meanwhile(_: int) -> None:
        with pytest.raises(InputError, match="another merge is writing it") as caught:
            fm.merge("emr", base, models, tmp_path / "out", resume=len(refused) % 2 == 0)
        refused.append(caught.value)

    fm.merge("linear", base, models, tmp_path / "out", progress=meanwhile)
    assert refused
    assert set(read(tmp_path / "out")) == set(state(0))
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("exchange", [True, False])
def test_overwriting(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old output stays until the new one is whole, even where folders cannot be exchanged in one step."""
    base, models = family(tmp_path, 2)
    out = tmp_path / "out"
    fm.merge("linear", base, models, out)
    old = content(out)
    if not exchange:
        monkeypatch.setattr(publish, "_exchange", lambda *_: False)
    with pytest.raises(Stop):
        fm.merge("emr", base, models, out, overwrite=True, progress=stop_after(2))
    assert content(out) == old
    fm.merge("emr", base, models, out, overwrite=True, resume=True)
    assert (out / "emr.json").exists()
    assert not (out / "model.safetensors").exists()
    assert hidden(tmp_path) == []


def test_stopped_between_two_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where folders cannot be exchanged, the next merge puts the old output back before anything else."""
    base, models = family(tmp_path, 2)
    out = tmp_path / "out"
    fm.merge("linear", base, models, out)
    old = content(out)
    monkeypatch.setattr(publish, "_exchange", lambda *_: False)
    rename = Path.rename

    def stopped(self: Path, target: Path) -> Path:
        if self.name == "content":
            raise Stop
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(Stop):
        fm.merge("emr", base, models, out, overwrite=True)
    monkeypatch.undo()
    with pytest.raises(InputError, match="exists already"):
        fm.merge("emr", base, models, out, resume=True)
    assert content(out) == old
    fm.merge("emr", base, models, out, resume=True, overwrite=True)
    assert (out / "emr.json").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_stopped_after_the_last_step(overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output is there, the hidden folder still too: --resume finds nothing left to do, and tidies up."""
    base, models = family(tmp_path, 2)
    out = tmp_path / "out"
    if overwrite:
        fm.merge("linear", base, models, out)

    def stopped(*_: object, **__: object) -> None:
        raise Stop

    monkeypatch.setattr(publish.shutil, "rmtree", stopped)
    with pytest.raises(Stop):
        fm.merge("emr", base, models, out, overwrite=overwrite)
    monkeypatch.undo()
    whole = content(out)
    report = fm.merge("emr", base, models, out, resume=True)
    assert (report.bytes_read, report.bytes_written) == (0, 0)
    assert report.results
    assert content(out) == whole
    assert hidden(tmp_path) == []


def test_a_strange_folder_is_left_alone(tmp_path: Path) -> None:
    base, models = family(tmp_path, 2)
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="in the way"):
        fm.merge("linear", base, models, tmp_path / "out")
    assert (tmp_path / ".out.partial" / "thesis.tex").read_text() == "mine"
