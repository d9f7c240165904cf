"""Tensors that a task has for itself come and go with it."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from folders import near, read, write
from live import bits, same
from torch import nn

import fastmerge as fm
from fastmerge.errors import InputError
from fastmerge.runtime import TaskModel

SIZES = {"two": 2, "three": 3, "seven": 7}
X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Classifier(nn.Module):
    def __init__(self, labels: int, seed: int = 0, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Linear(8, 8)
        self.classifier = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, labels, bias=bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.body(x))  # type: ignore[no-any-return]


def family(root: Path, *, headless: bool = False, bias: tuple[bool, ...] = (True,) * 3) -> tuple[Path, dict[str, Path]]:
    """A base with a head of five classes, or without one, and fine-tunes with heads of their own sizes."""
    base = Classifier(5).state_dict()
    folders = {}
    for k, (task, size) in enumerate(SIZES.items()):
        own = Classifier(size, k + 1, bias[k]).state_dict()
        own |= near({n: t for n, t in base.items() if n.startswith("body")}, k + 1)
        folders[task] = write(root / task, own)
    kept = {n: t for n, t in base.items() if not (headless and n.startswith("classifier"))}
    return write(root / "base", kept), folders


def merged(root: Path, **options: object) -> Path:
    base, models = family(root, **options)  # type: ignore[arg-type]
    fm.merge("emr", base, models, root / "emr", task_specific=["classifier.*"])
    return root / "emr"


def check(live: TaskModel, task: str, root: Path) -> None:
    """Head and outputs are those of the task's model as `fastmerge task` writes it."""
    fm.task(root / "emr", task, root / "written", overwrite=True)
    expected = Classifier(SIZES[task])
    expected.load_state_dict(read(root / "written"))
    live.set_task(task)
    assert live.classifier[1].out_features == SIZES[task]
    assert torch.equal(live(X), expected(X))


@pytest.mark.parametrize("headless", [False, True])
def test_heads_of_other_sizes(tmp_path: Path, headless: bool) -> None:
    """In any order; without a task base's head, or where base has none the model's own, to the bit."""
    loaded = fm.runtime.load(merged(tmp_path, headless=headless), Classifier(5, seed=9))
    first, live = bits(loaded.model), copy.deepcopy(loaded)
    assert live(X).shape == (4, 5)
    for task in ("three", "two", "seven", "three"):
        check(live, task, tmp_path)
    live.set_task(None)
    assert same(live.model, first)
    assert same(loaded.model, first), "of which the other is a copy"
    assert live.classifier[1].out_features == 5
    own = Classifier(5, seed=9 if headless else 0)
    assert torch.equal(live.classifier[1].weight, own.classifier[1].weight)


def test_what_keeps_its_shape_stays_in_memory(tmp_path: Path) -> None:
    live = fm.runtime.load(merged(tmp_path), Classifier(5))
    norm = live.classifier[0].weight.data_ptr()
    live.classifier[1].weight.requires_grad_(False)
    live.set_task("seven")
    assert live.classifier[0].weight.data_ptr() == norm
    assert not live.classifier[1].weight.requires_grad
    assert isinstance(live.classifier[1].weight, nn.Parameter)


def test_a_failure_brings_the_head_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = fm.runtime.load(merged(tmp_path), Classifier(5), task="two")
    before = bits(live.model)

    def fail(*_: object) -> None:
        monkeypatch.undo()
        raise MemoryError

    monkeypatch.setattr("fastmerge.runtime.heads._resize", fail)
    with pytest.raises(MemoryError):
        live.set_task("seven")
    assert same(live.model, before)
    assert (live.current, live(X).shape) == ("two", (4, 2))


def test_a_head_with_a_part_missing_is_refused(tmp_path: Path) -> None:
    """Not filled up with another task's, or with chance."""
    path = merged(tmp_path, headless=True, bias=(True, False, True))
    with pytest.raises(InputError, match=r"task three has no tensor 'classifier.1.bias' of its own"):
        fm.runtime.load(path, Classifier(5))


def test_a_model_without_the_head_is_refused(tmp_path: Path) -> None:
    model = Classifier(5)
    del model.classifier
    with pytest.raises(InputError, match=r"'classifier.1.weight' .* two, three, seven has for itself"):
        fm.runtime.load(merged(tmp_path), model)


def test_a_pickle_keeps_the_first_head(tmp_path: Path) -> None:
    """That of no task, which no file has, though another stands in its place."""
    first = fm.runtime.load(merged(tmp_path, headless=True), Classifier(4, 9), task="seven")
    other = pickle.loads(pickle.dumps(first))
    assert torch.equal(other(X), first(X))
    for task in (None, "two", "seven", None):
        first.set_task(task)
        other.set_task(task)
        assert other.classifier[1].out_features == SIZES.get(str(task), 4)
        assert torch.equal(other(X), first(X))
