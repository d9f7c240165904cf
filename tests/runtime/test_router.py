"""The router: what it learns, what it refuses, and that it is the same again after it was saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from experts import experts_folder
from folders import state
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastmerge.errors import InputError, MergeError
from fastmerge.formats import folder as folder_files
from fastmerge.runtime import Router, mean_pooled

TASKS = ["t0", "t1", "t2"]


def samples(n: int = 300, width: int = 40, apart: float = 3.0, seed: int = 0) -> tuple[Tensor, list[str]]:
    """Gaussian clusters around a centre per task, on axes of very different scales, and their tasks."""
    generator = torch.Generator().manual_seed(seed)
    centres = apart * torch.randn(3, width, generator=torch.Generator().manual_seed(99)) / width**0.5
    labels = torch.arange(n) % 3
    x = centres[labels] + torch.randn(n, width, generator=generator) / width**0.25
    return x * torch.logspace(-3, 3, width), [TASKS[k] for k in labels.tolist()]


def test_learns_what_can_be_told_apart() -> None:
    """On new samples of clusters that hardly overlap, from few hundred; and says how well it does."""
    router = Router.fit(*samples())
    assert router.tasks == tuple(TASKS)
    assert router.accuracy["train"] >= router.accuracy["validation"] > 0.9
    x, tasks = samples(600, seed=1)
    right = sum(a == b for a, b in zip(router.predict(x), tasks, strict=True)) / 600
    assert abs(right - router.accuracy["validation"]) < 0.1


def test_learns_nothing_from_noise() -> None:
    """Accuracy on samples kept back is that of guessing, whatever that on the others is."""
    x, tasks = samples(apart=0.0)
    assert Router.fit(x, tasks).accuracy["validation"] < 0.6


def test_labels_are_names_or_places() -> None:
    x, names = samples(60)
    places = torch.tensor([TASKS.index(name) for name in names])
    by_name, by_place = Router.fit(x, names), Router.fit(x, places, TASKS)
    assert torch.equal(by_name.weight, by_place.weight)
    assert by_place.tasks == by_name.tasks
    assert Router.fit(x, places).tasks == ("0", "1", "2")
    with torch.inference_mode():
        assert torch.equal(Router.fit(x.clone(), names).weight, by_name.weight)
    assert Router.fit(x, names, ["t2", "t0", "t1"]).predict(x) == by_name.predict(x)


@given(st.integers(6, 40), st.integers(1, 5), st.integers(0, 5), st.floats(0, 0.9))
def test_any_features(n: int, width: int, seed: int, validation: float) -> None:
    """Few samples, columns without variance: weights sum to one, and the same seed gives the same router."""
    x, tasks = samples(n, width, seed=seed)
    x[:, 0] = 7
    one, two = (Router.fit(x, tasks, validation=validation, seed=seed) for _ in range(2))
    assert torch.equal(one.weight, two.weight)
    assert torch.allclose(one.weights(x).sum(1), torch.ones(n))
    assert one.weights(x).argmax(1).tolist() == [TASKS.index(task) for task in one.predict(x)]


def test_saved_and_loaded(tmp_path: Path) -> None:
    """Beside the experts, the same to the bit, and the same files every time."""
    folder = experts_folder(tmp_path / "free", state(0))
    router = Router.fit(*samples())
    router.save(folder)
    files = {f.name: f.read_bytes() for f in folder.glob("router.*")}
    assert set(files) == {"router.json", "router.safetensors"}
    loaded = Router.load(folder)
    x, _ = samples(seed=3)
    assert torch.equal(loaded.weights(x), router.weights(x))
    assert (loaded.tasks, loaded.accuracy) == (router.tasks, router.accuracy)
    loaded.save(folder)
    assert {f.name: f.read_bytes() for f in folder.glob("router.*")} == files
    router.save(tmp_path / "elsewhere")
    assert Router.load(tmp_path / "elsewhere").tasks == router.tasks


def test_a_router_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    router = Router.fit(*samples())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot be made a folder: File exists; choose another"):
        router.save(tmp_path / "file")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_files.os, "replace", full)
    with pytest.raises(MergeError, match=r"router\.safetensors: cannot be written: No space left on device"):
        router.save(tmp_path / "folder")
    assert not [*(tmp_path / "folder").iterdir()]


@pytest.mark.parametrize("written", ["router.safetensors", "router.json"])
def test_a_save_that_was_cut_short_is_no_router(written: str, tmp_path: Path) -> None:
    """Of other tasks, or the same in another order: weights of one would stand beside the names of the other."""
    x, labels = samples()
    Router.fit(x, labels, TASKS).save(tmp_path / "before")
    Router.fit(x, labels, TASKS[::-1]).save(tmp_path / "after")
    (tmp_path / "after" / written).replace(tmp_path / "before" / written)
    with pytest.raises(InputError, match="the router is damaged: train it again"):
        Router.load(tmp_path / "before")


def test_another_task_list(tmp_path: Path) -> None:
    """Neither saved beside, nor loaded from beside, experts of other tasks."""
    folder = experts_folder(tmp_path / "free", state(0), 2)
    router = Router.fit(*samples())
    with pytest.raises(InputError, match=r"for the tasks t0, t1, t2, .*free has t0, t1") as caught:
        router.save(folder)
    assert len(caught.value.problems) == 1
    router.save(tmp_path / "elsewhere")
    for file in (tmp_path / "elsewhere").iterdir():
        file.rename(folder / file.name)
    with pytest.raises(InputError, match="for the tasks t0, t1, t2"):
        Router.load(folder)


def change(**values: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "router.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return apply


def drop_bias(folder: Path) -> None:
    tensors = load_file(folder / "router.safetensors")
    del tensors["bias"]
    save_file(tensors, folder / "router.safetensors")


def filled(**values: float) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "router.safetensors")
        save_file(tensors | {n: tensors[n] * 0 + v for n, v in values.items()}, folder / "router.safetensors")

    return apply


def without_tasks(folder: Path) -> None:
    tensors = load_file(folder / "router.safetensors")
    save_file(tensors | {n: tensors[n][:0] for n in ("weight", "bias")}, folder / "router.safetensors")
    change(tasks=[])(folder)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: (folder / "router.json").unlink(), "has no router"),
        (lambda folder: (folder / "router.safetensors").write_bytes(b"123"), "cut off"),
        (change(features=3), "do not fit together"),
        (change(tasks=["t0", "t0", "t1"]), "do not fit together"),
        (change(version=7), "version"),
        (filled(weight=torch.nan), "is damaged"),
        (filled(deviation=0.0), "is damaged"),
        (without_tasks, "is damaged"),
        (drop_bias, "do not fit together"),
    ],
)
def test_damaged_routers(tmp_path: Path, damage: Callable[[Path], None], expected: str) -> None:
    Router.fit(*samples()).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=expected) as caught:
        Router.load(tmp_path)
    assert len(caught.value.problems) == 1


X, LABELS = samples(30)


def wild(value: float) -> Tensor:
    """Features of which one sample's are no numbers."""
    return X.index_fill(0, torch.tensor([7]), value)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: Router.fit(X[:-1], LABELS), r"they are \[29, 40\] and 30"),
        (lambda: Router.fit(X * torch.nan, LABELS), "NaN or infinity"),
        (lambda: Router.fit(X.double() * 1e300, LABELS), "NaN or infinity"),
        (lambda: Router.fit(X, torch.tensor(0)), r"they are \[30, 40\] and 1"),
        (lambda: Router.fit(X, LABELS).predict(wild(torch.nan)), "features of sample 7 hold NaN"),
        (lambda: Router.fit(X, LABELS).predict(wild(torch.inf)), "features of sample 7 hold NaN"),
        (lambda: Router.fit(X, LABELS, ["t0", "t1"]), "10 labels are of no task; there are t0, t1"),
        (lambda: Router.fit(X, LABELS, [*TASKS, "t3"]), "no samples of t3"),
        (lambda: Router.fit(X, LABELS, [*TASKS, "t2"]), "two tasks have one name"),
        (lambda: Router.fit(X, LABELS, validation=1.0), "validation is 1.0"),
        (
            lambda: Router.fit(X, ["t0", *range(29)]),
            r"labels: expected Tensor or \[str, …\] or \[a whole number, …\], not a list$",
        ),
        (lambda: Router.fit(X, LABELS, seed=1 << 70), "seed: is 1180591620717411303424; expected a whole number of 64"),
        (
            lambda: mean_pooled(torch.nn.Linear(1, 1), X),
            "features: the model is none of Hugging Face's; pass a function",
        ),
        (lambda: Router.fit(X, LABELS).weights(X[:, 1:]), r"features must be \[N, 40\]"),
    ],
)
def test_bad_input(call: Callable[[], object], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        call()
