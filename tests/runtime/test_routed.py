"""A mixed batch under a router: what each sample would get alone under its task, in the order of the inputs."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from experts import experts_folder
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fastmerge as fm
from fastmerge.errors import InputError
from fastmerge.runtime import RoutedModel, Router, TaskModel

TASKS = ["t0", "t1", "t2"]
Pair = namedtuple("Pair", "first second")


class Body(nn.Module):
    """Gives whatever kind of output it is asked for."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Linear(4, 6)
        self.classifier = nn.Linear(6, 2)
        self.batches: list[int] = []

    def forward(self, x: Tensor, kind: str = "tensor", names: list[str] | None = None, **extra: Any) -> Any:
        if kind == "pair":
            return self(x.second)
        self.batches.append(len(x))
        y = self.classifier(self.body(x))
        several = {
            "tensor": y,
            "tuple": (y, self.body(x)),
            "named": Pair(y, y.sum(1)),
            "dict": {"y": y, "loss": y.mean(), "none": None, "deep": [y]},
            "other": [y, "".join(names or ())],
            "texts": names,
            "numbered": {0: y},
        }
        return several[kind]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> TaskModel:
    root = tmp_path_factory.mktemp("routed")
    state = {n: t for n, t in Body().state_dict().items() if n.startswith("body")}
    heads = {task: nn.Linear(6, 2).state_dict() for task in TASKS}
    own = {task: {f"classifier.{n}": t for n, t in head.items()} for task, head in heads.items()}
    return fm.runtime.load(experts_folder(root / "free", state, heads=own), Body(1))


def centred(task: int, n: int, seed: int = 0) -> Tensor:
    """Samples that only one task can have made."""
    return 0.1 * torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)) + 5 * torch.eye(4)[task]


@pytest.fixture(scope="module")
def router() -> Router:
    return Router.fit(torch.cat([centred(k, 30) for k in range(3)]), [t for t in TASKS for _ in range(30)])


@pytest.fixture
def routed(live: TaskModel, router: Router) -> RoutedModel:
    live.set_task(None)
    return RoutedModel(live, router, lambda x, *_, **__: x.first if isinstance(x, Pair) else x)


def alone(live: TaskModel, x: Tensor, task: str) -> Tensor:
    with live.task(task), torch.no_grad():
        return live(x.unsqueeze(0))[0]


@given(st.lists(st.integers(0, 2), min_size=1, max_size=9))
def test_order_is_that_of_the_inputs(live: TaskModel, router: Router, order: list[int]) -> None:
    """Whatever the mixture: each task's samples in one batch, and every output where its input was."""
    routed = RoutedModel(live, router, lambda x: x)
    x = torch.cat([centred(task, 1, seed) for seed, task in enumerate(order)])
    live.model.batches.clear()
    with torch.no_grad():
        y = routed(x)
    assert sorted(live.model.batches) == sorted(order.count(k) for k in set(order))
    for i, task in enumerate(order):
        assert torch.allclose(y[i], alone(live, x[i], TASKS[task]), atol=1e-6)
    assert live.current is None


MIXED = torch.cat([centred(k, 1, k) for k in (2, 0, 1, 0)])


@pytest.mark.parametrize("kind", ["tuple", "named", "dict", "other", "numbered"])
def test_outputs_keep_their_kind(routed: RoutedModel, kind: str) -> None:
    """Tuples, named tuples, mappings, nested ones; losses and what is no tensor by sample."""
    live, names = routed.task_model, ["a", "b", "c", "d"]
    with torch.no_grad():
        plain = routed(MIXED)
        y = routed(MIXED, kind=kind, names=names)
    if kind == "tuple":
        assert torch.equal(y[0], plain)
        assert y[1].shape == (4, 6)
    elif kind == "named":
        assert isinstance(y, Pair)
        assert torch.equal(y.second, plain.sum(1))
    elif kind == "dict":
        assert torch.equal(y["y"], plain)
        assert torch.equal(y["deep"][0], plain)
        assert y["none"] is None
        assert torch.allclose(
            y["loss"], torch.stack([plain[0].mean(), both := plain[[1, 3]].mean(), plain[2].mean(), both])
        )
    else:
        assert torch.equal(y[0], plain)
        assert kind == "numbered" or y[1] == ["a", "bd", "c", "bd"]
    assert live.current is None


@pytest.mark.parametrize(
    "rows", [[0, 1, 2, 3], [0, 1, 0, 1], [1, 3], []], ids=["mixed", "in halves", "one task", "none"]
)
def test_outputs_do_not_depend_on_the_mixture(routed: RoutedModel, rows: list[int]) -> None:
    """Texts are the samples', a loss is one a sample; of no sample, what the model itself says of it."""
    names = [f"sample {i}" for i in range(len(rows))]
    with torch.no_grad():
        assert routed(MIXED[rows], kind="texts", names=names) == names
        y = routed(MIXED[rows], kind="dict")
        pair = routed(Pair(MIXED[rows], MIXED[rows]), kind="pair") if rows else None
    assert y["y"].shape == (len(rows), 2)
    assert y["loss"].shape == ((len(rows),) if rows else ())
    assert pair is None or torch.equal(pair, y["y"])


def test_heads_of_different_sizes_give_a_list(tmp_path: Path, router: Router) -> None:
    state = {n: t for n, t in Body().state_dict().items() if n.startswith("body")}
    own = {
        task: {f"classifier.{n}": t for n, t in nn.Linear(6, k + 2).state_dict().items()}
        for k, task in enumerate(TASKS)
    }
    live = fm.runtime.load(experts_folder(tmp_path / "free", state, heads=own), Body(1))
    y = RoutedModel(live, router, lambda x: x)(MIXED)
    assert [len(row) for row in y] == [4, 2, 3, 2]
    for row, x, k in zip(y, MIXED, (2, 0, 1, 0), strict=True):
        assert torch.allclose(row, alone(live, x, TASKS[k]), atol=1e-6)


def test_features_are_those_of_the_model_without_a_task(live: TaskModel, router: Router) -> None:
    """Whatever task is in force, and comes back after an exception too."""
    seen = []

    def features(x: Tensor) -> Tensor:
        seen.append(live.current)
        return x

    live.set_task("t1")
    routed = RoutedModel(live, router, features)
    routed(MIXED)
    with pytest.raises(KeyError):
        RoutedModel(live, router, lambda x, kind: features(x))(MIXED, kind="unheard of")
    assert seen == [None, None]
    assert live.current == "t1"
    live.set_task(None)


def test_a_router_with_another_task_list(live: TaskModel) -> None:
    other = Router.fit(torch.eye(4), ["t0", "t1", "t0", "t1"], validation=0)
    with pytest.raises(InputError, match="for the tasks t0, t1, the model has t0, t1, t2") as caught:
        RoutedModel(live, other)
    assert len(caught.value.problems) == 1
