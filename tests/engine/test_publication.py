"""How an output takes its place: whole or not at all, and nothing of others is touched."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
from folders import content, family, read, state
from stops import Stop, hidden, stop_after

import fastmerge as fm
from fastmerge.engine import publish
from fastmerge.engine.merge import execute
from fastmerge.errors import InputError, MergeError

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


def linked(folder: Path, into: Path) -> Path:
    """A model whose files are links to those of another."""
    folder.mkdir()
    for file in into.iterdir():
        (folder / file.name).symlink_to(file)
    return folder


@pytest.mark.parametrize(
    ("what", "alone"),
    [(what, None) for what in ("merge", "recipe", "extract", "task")]
    + [("merge", "config.json"), ("task", "emr.json")],
)
def test_an_input_is_not_overwritten_through_links(what: str, alone: str | None, tmp_path: Path) -> None:
    """A folder of links into the output is as much an input as the output itself, and so is each link."""
    base, models = family(tmp_path, 2)
    fm.merge("emr", base, models, tmp_path / "emr")
    own = linked(tmp_path / "links", tmp_path / "emr" if what == "task" else models["m0"])
    target = tmp_path / "emr" if what == "task" else models["m0"]
    for file in own.iterdir():
        if alone not in (None, file.name) and file.is_file():
            data = file.read_bytes()
            file.unlink()
            file.write_bytes(data)
    before = content(target)
    (tmp_path / "r.yaml").write_text(f"method: linear\nmodels: {{a: {own}}}\n")
    calls = {
        "merge": lambda: fm.merge("linear", base, {"a": own}, target, overwrite=True),
        "recipe": lambda: fm.run(tmp_path / "r.yaml", target, overwrite=True),
        "extract": lambda: fm.extract_lora(base, own, target, overwrite=True),
        "task": lambda: fm.task(own, "m0", target, overwrite=True),
    }
    with pytest.raises(InputError, match="would overwrite the input"):
        calls[what]()
    assert content(target) == before


def test_only_what_fastmerge_wrote_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's files go with the folder that a result replaces."""
    base, models = family(tmp_path / "in", 2)
    out = tmp_path / "runs" / "out"
    again = partial(fm.merge, "linear", base, models, overwrite=True)
    out.mkdir(parents=True)
    again(out)  # which was empty
    again(out)
    fm.merge("linear", base, models, tmp_path / "repository")
    (tmp_path / "repository" / ".git").mkdir()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("mine")
    for folder, name in (("runs", "out"), ("thesis", "thesis.txt"), ("repository", ".git")):
        folder = tmp_path / folder
        before = content(folder)
        with pytest.raises(InputError, match=rf"{folder}: has '{name}', which fastmerge did not write"):
            again(folder)
        assert content(folder) == before
    monkeypatch.setenv("HOME", str(out))
    with pytest.raises(InputError, match="is your home folder, or holds it"):
        again(out)
    monkeypatch.setenv("HOME", str(tmp_path / "in"))
    monkeypatch.setattr(os.path, "ismount", lambda path: path == out)
    with pytest.raises(InputError, match="a file system is mounted"):
        again(out)


def test_results_of_a_merge_are_overwritten_together(tmp_path: Path) -> None:
    """Those of the same names, and nothing beside them."""
    base, models = family(tmp_path / "in", 2)
    again = partial(fm.merge, "task_arithmetic", base, models, tmp_path / "out", overwrite=True)
    again(outputs={"plain": {}, "half": {"scale": 0.5}})
    again(outputs={"plain": {}, "half": {"scale": 0.4}})
    (tmp_path / "recipe.yaml").write_text("nonsense: 1\n")
    with pytest.raises(InputError) as caught:
        fm.run(tmp_path / "recipe.yaml", tmp_path / "out", overwrite=True)
    assert not any("did not write" in problem for problem in caught.value.problems), "what it would write is not known"
    for outputs in ({"plain": {}}, {}):
        with pytest.raises(InputError, match="has 'half', which fastmerge did not write"):
            again(outputs=outputs)


def test_what_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    base, models = family(tmp_path / "in", 2)
    (tmp_path / "out").mkdir()
    with pytest.raises(
        MergeError, match=r"'mine\.txt' has appeared there while merging; move it and go on with --resume"
    ):
        fm.merge(
            "linear",
            base,
            models,
            tmp_path / "out",
            overwrite=True,
            progress=lambda *_: (tmp_path / "out" / "mine.txt").touch(),
        )
    assert (tmp_path / "out" / "mine.txt").exists()
    (tmp_path / "out" / "mine.txt").unlink()
    fm.merge("linear", base, models, tmp_path / "out", overwrite=True, resume=True)


@pytest.mark.parametrize(
    "recipe",
    [
        "method: linear\nmodels: {{a: {m}}}\n",
        "merge_method: linear\nmodels: [{{model: {m}, parameters: {{weight: 1}}}}]\n",
    ],
)
def test_a_recipe_is_not_overwritten(recipe: str, tmp_path: Path) -> None:
    _, models = family(tmp_path, 1)
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / "r.yaml"
    file.write_text(recipe.format(m=models["m0"]))
    with pytest.raises(InputError, match=r"would overwrite the input .*r\.yaml"):
        fm.run(file, tmp_path / "out", overwrite=True)
    assert file.exists()


@pytest.mark.parametrize("out", [".", "x/../y", "y/.", "x/.."])
def test_an_output_by_another_name(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What "." and ".." mean is found once, whether the folders on the way exist or not."""
    base, models = family(tmp_path, 2)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    where = (tmp_path / "here" / out).resolve()
    fm.merge("linear", base, models, out, overwrite=True)
    assert set(read(where)) == set(state(0))
    assert hidden(where.parent) == []


@pytest.mark.parametrize(
    ("out", "said"),
    [("a" * 256, "name too long"), ("a" * 250, "name too long"), ("a\0b", "NUL"), ("~nobody-at-all/x", "in full")],
    ids=["too long", "too long when hidden", "NUL", "nobody's"],
)
def test_no_name_for_an_output(out: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, models = family(tmp_path, 2)
    fm.merge("emr", base, models, tmp_path / "emr")
    monkeypatch.chdir(tmp_path)
    calls = (
        lambda: fm.merge("linear", base, models, out),
        lambda: fm.task(tmp_path / "emr", "m0", out),
        lambda: fm.extract_lora(base, models["m0"], out),
    )
    for call in calls:
        with pytest.raises(InputError, match=f"(?i){said}"):
            call()


@pytest.mark.parametrize(("mode", "said"), [(0o555, "cannot be written to"), (0o000, "(?i)permission denied")])
def test_a_folder_that_is_closed(mode: int, said: str, as_nobody: Path) -> None:
    """Found before any work, also where nothing below it can be seen."""
    base, models = family(as_nobody, 2)
    closed = as_nobody / "closed"
    closed.mkdir()
    closed.chmod(mode)
    with pytest.raises(InputError, match=said):
        fm.plan("linear", base, models, closed / "x" / "out")


def test_the_loser_of_a_race_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output appears after it was looked for, before the hidden folder is locked."""
    base, models = family(tmp_path, 2)
    prepared = fm.plan("linear", base, models, tmp_path / "out")
    fm.merge("linear", base, models, tmp_path / "out")
    with pytest.raises(InputError, match="exists already"):
        execute(prepared)
    assert hidden(tmp_path) == []
