"""Which vertices are chosen: worked out by hand, and as the released code chooses on a toy problem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hulls import Problem, Weights
from tensors import BF16
from torch import Tensor, nn

import fastmerge as fm

State = Mapping[str, Tensor]


def cosine_of(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.flatten(), b.flatten(), 0))


def released(problem: Problem, lmo: str, steps: int) -> list[list[str]]:
    """The choices of fusion_bench's FrankWolfeHardAlgorithm, written anew from its description: the cosine of each
    parameter's gradient and weight, its sum over parameters for a choice by task; (1 − γ)θ + γs with γ = 2/(t+2)."""
    theta = dict(problem.initial)
    candidates = {"initial": problem.initial} | {f"model{k}": state for k, state in enumerate(problem.pool)}
    chosen = []
    for t in range(steps):
        model = Weights(theta)
        problem.loss(model).backward()
        cosine = {
            k: {n: cosine_of(p.grad, s[n]) for n, p in model.named_parameters() if p.grad is not None}
            for k, s in candidates.items()
        }
        if lmo == "task":
            one = min(candidates, key=lambda k: sum(cosine[k].values()))
            best = dict.fromkeys(theta, one)
        else:
            best = {n: min(candidates, key=lambda k: cosine[k][n]) for n in theta}
        gamma = 2 / (t + 2)
        theta = {n: (1 - gamma) * theta[n] + gamma * candidates[best[n]][n] for n in theta}
        chosen.append([best["a"]] if lmo == "task" else list(best.values()))
    return chosen


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lmo", ["task", "layer"])
def test_choices_of_the_released_code(seed: int, lmo: Any) -> None:
    problem = Problem(seed, k=6)
    options: dict[str, Any] = {"alignment": "cosine", "step": "2/(t+2)", "steps": 8, "tolerance": -torch.inf}
    result = fm.frank_wolfe(problem.model(), problem.pool, problem.loss, [None], lmo=lmo, **options)
    found = [[name for row in step.vertices for name in row] for step in result.steps]
    assert found == released(problem, lmo, 8)
    assert len({tuple(step) for step in found}) > 2


def linear(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """A loss whose gradient is the batch."""
    return torch.stack([(p.double() * batch[n]).sum() for n, p in model.named_parameters()]).sum()


POOL = {
    "east": {"x": torch.tensor([4.0, 0.0]), "y": torch.tensor([1.0])},
    "north": {"x": torch.tensor([0.0, 1.0]), "y": torch.tensor([-3.0])},
    "far": {"x": torch.tensor([-1.0, -1.0]), "y": torch.tensor([2.0])},
}
G = {"x": torch.tensor([1.0, 2.0], dtype=torch.float64), "y": torch.tensor([1.0], dtype=torch.float64)}


SOFT: dict[str, Any] = {"variant": "soft", "step": "line_search"}


def first(batches: Any = (G,), **options: Any) -> fm.fw.Step:
    """The first step from 0; ⟨g, θ⟩ is east 4 + 1, north 2 − 3, far −3 + 2, initial 0."""
    model = Weights({"x": torch.zeros(2), "y": torch.zeros(1)})
    options = {"steps": 1, "step": 0.5} | options
    return fm.frank_wolfe(model, POOL, linear, batches, **options).steps[0]


@pytest.mark.parametrize(
    ("options", "vertices", "gap"),
    [
        ({}, [["north"]], 1.0),  # as good as far, and before it
        ({"lmo": "layer"}, [["far"], ["north"]], 6.0),
        ({"lmo": "layer", "layers": ["?"]}, [["north"]], 1.0),
        ({"coefficients": "layer"}, [["north"]], 6.0),  # the hull is the product of the layers'
        ({"alignment": "cosine"}, [["north"]], 1.0),  # x: 4, 2, −3 over their norms; y: 1, −1, 1
        (SOFT | {"top_k": 3}, [["north", "far", "initial"]], 1.0),
        (
            SOFT | {"top_k": 9, "initial_vertex": False},
            [["north", "far", "east"]],
            1.0,
        ),
    ],
    ids=str,
)
def test_by_hand(options: dict[str, Any], vertices: list[list[str]], gap: float) -> None:
    step = first(**options)
    assert step.vertices == vertices
    assert step.gap == pytest.approx(gap)


def test_best_of_each_tasks_gradient() -> None:
    """Tasks in their order, none of them one that another took; the loss is the weighted mean of theirs."""
    batches = {"down": [{n: g.abs() for n, g in G.items()}], "up": [{n: -g for n, g in G.items()}], "again": [G]}
    soft = SOFT | {"per_task_top_k": 1}
    step = first(batches, **soft)
    assert step.vertices == [["north", "east", "far"]]
    assert {*step.losses} == {*batches}
    assert first(batches, **soft | {"per_task_top_k": 2}).vertices == [["north", "far", "east", "initial"]]
    weighted = first(batches, task_weights={"down": 0, "up": 3, "again": 0}, **soft)
    assert weighted.vertices == step.vertices  # each task's own gradient, whatever its weight
    assert weighted.gap == pytest.approx(5.0)  # but the gap is of the whole: to east
    mixed = first(batches, task_weights={"down": 0, "up": 3, "again": 0})
    assert mixed.vertices == [["east"]]


def test_merge_fn() -> None:
    """TIES in place of the convex combination: no gap, no coefficients, and tensors as the function makes them."""

    def ties(theta: Tensor, vertices: list[Tensor], weights: list[float]) -> Tensor:
        return fm.ops.combine(theta, vertices, weights, consensus="weighted").merged

    model = Weights({"x": torch.zeros(2), "y": torch.zeros(1)})
    result = fm.frank_wolfe(model, POOL, linear, [G], merge_fn=ties, step=0.5, steps=1)
    assert result.steps[0].gap is None
    assert model.state_dict()["y"].tolist() == [-1.5]
    with pytest.raises(fm.errors.InputError, match="no coefficients"):
        result.coefficients  # noqa: B018 - a property that raises
    with pytest.raises(fm.errors.InputError, match="a fixed step"):
        fm.frank_wolfe(model, POOL, linear, [G], merge_fn=ties)


@pytest.mark.parametrize(("made", "told"), [(None, "a NoneType"), (torch.ones(3), r"\[3\]")])
def test_a_merge_fn_that_returns_something_else(made: Any, told: str) -> None:
    model = Weights({"x": torch.zeros(2), "y": torch.zeros(1)})
    with pytest.raises(fm.errors.InputError, match=rf"merge_fn: must return a tensor \[2\] for 'x', not {told}"):
        fm.frank_wolfe(model, POOL, linear, [G], merge_fn=lambda *_: made, step=0.5, steps=1)
    assert model.state_dict()["x"].tolist() == [0, 0]


class BrokenError(Exception):
    """What ends a merge function."""


@pytest.mark.parametrize("fault", ["raises", "not finite"])
def test_a_merge_fn_that_fails_leaves_the_step_before(fault: str) -> None:
    """Also where it changes what it is given, and a buffer, which has no gradient whose place could hold it."""
    model = Weights({"x": torch.tensor([0.1, 0.2], dtype=BF16), "y": torch.zeros(1)})
    model.register_buffer("z", torch.ones(1))
    pool = [{"x": torch.ones(2, dtype=BF16), "y": torch.ones(1), "z": torch.ones(1)}]
    after: list[dict[str, Tensor]] = []
    names: list[str] = []

    def merge(theta: Tensor, _: list[Tensor], __: list[float]) -> Tensor:
        names.append("made")
        theta += 1
        if len(names) == 6 and fault == "raises":
            raise BrokenError
        return theta / 0 if len(names) == 6 else theta

    def keep(_: fm.fw.Step) -> None:
        after.append({n: t.clone() for n, t in model.state_dict().items()})

    with pytest.raises(BrokenError if fault == "raises" else fm.errors.MergeError, match=r"'z'|^$"):
        fm.frank_wolfe(model, pool, lambda m, _: m.x.sum() + m.y, [0], merge_fn=merge, step=0.5, steps=2, callback=keep)
    assert len(after) == 1
    assert all(torch.equal(t, after[0][n]) for n, t in model.state_dict().items())
    assert model.y.item() == 1.0
