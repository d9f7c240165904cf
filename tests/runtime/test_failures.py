"""A switch that fails in the middle: the model is as before, or refuses to compute until a switch succeeds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from experts import experts_folder
from live import TASKS, Net, bits, emr, same, stored
from safetensors.torch import load_file, save_file

import fastmerge as fm
from fastmerge.errors import InputError, MergeError
from fastmerge.runtime import TaskModel

IDS = torch.arange(5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    state = {name: t for name, t in stored(Net(0)).items() if t.is_floating_point()}
    return {"emr": emr(root), "experts": experts_folder(root / "experts", state, copied=[])}


@pytest.fixture(params=["emr", "experts"])
def live(request: pytest.FixtureRequest, folders: dict[str, Path]) -> TaskModel:
    """A model that was of every task, so that failures meet all that is kept, and is of the second now."""
    model = fm.runtime.load(folders[request.param], Net(1))
    for task in [*model.tasks, model.tasks[1]]:
        model.set_task(task)
    return model


class Planted:
    """Fails in the n-th call of an op and in every later one, up to `times` of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], n: int, times: int) -> None:
        self.error, self.left, self.times = error, n, times
        for name in ("modulate", "scatter"):
            monkeypatch.setattr(fm.ops, name, self._failing(getattr(fm.ops, name)))

    def _failing(self, op: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left <= 0 < self.times:
                self.times -= 1
                raise self.error("planted")
            return op(*args, **kwargs)

        return call


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, KeyboardInterrupt], ids=lambda e: e.__name__)
@pytest.mark.parametrize("n", [1, 3, 6])
def test_goes_back(live: TaskModel, error: type[BaseException], n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before, task, expected = bits(live.model), live.current, live(IDS)
    with monkeypatch.context() as planting:
        Planted(planting, error, n, 1)
        with pytest.raises(error, match="planted"):
            live.set_task(live.tasks[2])
    assert same(live.model, before)
    assert live.current == task
    assert torch.equal(live(IDS), expected)
    for wanted in (live.tasks[2], None, task):
        live.set_task(wanted)
    assert same(live.model, before)


def test_goes_back_from_a_first_use(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before all of an expert's originals are known, at whichever step it fails."""
    expected = fm.runtime.load(folders["experts"], Net(1), task="t1")
    for n in range(1, 12):
        live = fm.runtime.load(folders["experts"], Net(1), task="t0")
        before = bits(live.model)
        with monkeypatch.context() as planting:
            Planted(planting, RuntimeError, n, 1)
            with pytest.raises(RuntimeError, match="planted"):
                live.set_task({"t1": 1.0, "t0": 0.5})
        assert same(live.model, before), n
        live.set_task("t1")
        assert same(live.model, bits(expected.model)), n


def test_refuses_when_it_cannot_go_back(live: TaskModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is called, a copy of it too; a switch that succeeds mends it."""
    before, task = bits(live.model), live.current
    with monkeypatch.context() as planting:
        Planted(planting, RuntimeError, 3, 2)
        with pytest.raises(MergeError, match="set a task again"):
            live.set_task(live.tasks[2])
    other = copy.deepcopy(live)
    for call in (live, live.model, live.model.up, live.down, other, other.up):
        with pytest.raises(MergeError, match="is of no task: a switch failed"):
            call(IDS)
    for one in (live, other):
        one.set_task(task)
        assert same(one.model, before)
        assert one(IDS).isfinite().all()


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    state = {name: t for name, t in stored(Net(0)).items() if t.is_floating_point()}
    return experts_folder(tmp_path / "experts", state, copied=[])


def test_a_damaged_expert_is_found_before_anything_changes(damaged: Path) -> None:
    """Offsets that do not increase: an error when the task is asked for, and the others work."""
    file = damaged / "experts" / "t1.safetensors"
    parts = load_file(file)
    parts["up.weight/offsets"] = parts["up.weight/offsets"].int().roll(1).to(torch.uint16)
    save_file(parts, file)
    live = fm.runtime.load(damaged, Net(1), task="t0")
    before = bits(live.model)
    for wanted in ("t1", {"t0": 1.0, "t1": 1.0}):
        with pytest.raises(InputError, match=r"expert t1: .*'up.weight': its offsets do not increase") as caught:
            live.set_task(wanted)
        assert len(caught.value.problems) == 1
    assert (live.current, same(live.model, before)) == ("t0", True)


def test_an_expert_cut_short(damaged: Path) -> None:
    file = damaged / "experts" / "t1.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    model = Net(1)
    before = bits(model)
    with pytest.raises(InputError, match=r"expert t1: .*t1\.safetensors: .*cut off") as caught:
        fm.runtime.load(damaged, model)
    assert len(caught.value.problems) == 1
    assert same(model, before)


@pytest.mark.parametrize("file", ["experts/t1.safetensors", "model.safetensors"])
def test_a_file_that_changes_while_it_is_in_use(damaged: Path, file: str) -> None:
    """Written to, it is found out before it is read; removed, it is of use still."""
    live, other = (fm.runtime.load(damaged, Net(1), task="t0") for _ in range(2))
    before = bits(live.model)
    (damaged / file).rename(damaged / "gone")
    other.set_task("t1")
    with (damaged / "gone").open("r+b") as stream:
        stream.truncate(4096)
    (damaged / "gone").rename(damaged / file)
    with pytest.raises(MergeError, match="has changed since its header was read"):
        live.set_task("t1")
    assert (live.current, same(live.model, before)) == ("t0", True)


def test_emr_masks_cut_short(tmp_path: Path) -> None:
    artefact = emr(tmp_path)
    file = artefact / "masks.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="cut off") as caught:
        fm.runtime.load(artefact, Net(1), task=TASKS[0])
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("kind", "task", "says"),
    [
        ("emr", {"math": 1.0, "code": 1.0}, "one task at a time"),
        ("experts", ["t0"], "task: expected str or {str: a number} or None, not a list"),
        ("experts", 3, "None, not 3"),
        ("experts", {"t0": float("nan")}, "weight is nan"),
        ("experts", {"t0": 10**400}, "expected a number that float32 can hold"),
        ("damaged", "t1", "offsets do not increase"),
    ],
)
def test_a_first_task_that_cannot_be_changes_nothing(
    folders: dict[str, Path], damaged: Path, kind: str, task: Any, says: str
) -> None:
    file = damaged / "experts" / "t1.safetensors"
    parts = load_file(file)
    parts["up.weight/offsets"] = parts["up.weight/offsets"].int().roll(1).to(torch.uint16)
    save_file(parts, file)
    model = Net(1)
    before = bits(model)
    with pytest.raises(InputError, match=says):
        fm.runtime.load({**folders, "damaged": damaged}[kind], model, task=task)
    assert same(model, before)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_an_artefact_of_other_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    artefact = emr(tmp_path)
    file = artefact / "unified.safetensors"
    save_file({name: t.to(dtype) for name, t in load_file(file).items()}, file)
    for use in (lambda: fm.runtime.load(artefact, Net(1)), lambda: fm.task(artefact, TASKS[0], tmp_path / "out")):
        with pytest.raises(InputError, match=r"unified 'embed.weight' is .8.*; the artefact is damaged"):
            use()
