"""On convex quadratics, whose minima another solver knows: the optimum, and the rate at which it is neared."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hulls import Problem, Weights
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastmerge as fm
from fastmerge.fw.line_search import line_search
from fastmerge.fw.simplex import Simplex, project
from fastmerge.fw.soft import blend

SEEDS = range(2)


def run(problem: Problem, **options: Any) -> fm.fw.Result:
    return fm.frank_wolfe(problem.model(), problem.pool, problem.loss, [None], **options)


def losses(result: fm.fw.Result) -> list[float]:
    """ℓ(θ_t), of the final model too."""
    assert result.loss is not None
    return [step.loss for step in result.steps] + [result.loss]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"step": "2/(t+2)"},
        {"variant": "soft", "top_k": 2},
        {"variant": "soft", "top_k": 3, "coefficients": "layer"},
        {"lmo": "layer", "coefficients": "layer"},
        {"lmo": "layer"},
        {"initial_vertex": False, "step": "2/(t+2)"},
    ],
    ids=str,
)
def test_no_slower_than_the_theory(seed: int, options: dict[str, Any]) -> None:
    """ℓ(θ_t) − min ℓ ≤ 2 L diam² / (t + 2) at every step (Jaggi 2013, Theorem 1), and the gap bounds it."""
    problem = Problem(seed)
    layered = options.get("lmo") == "layer"
    least = problem.least(by_layer=layered, initial=options.get("initial_vertex", True))
    result = run(problem, steps=40, tolerance=-torch.inf, **options)
    for t, value in enumerate(losses(result)):
        assert value - least <= 2 * problem.curvature() / (t + 2) + 1e-12 or not t
    if "layer" not in options.values() and options.get("initial_vertex", True):
        assert all(step.gap is not None and step.gap >= step.loss - least - 1e-12 for step in result.steps)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("coefficients", ["task", "layer"])
def test_soft_steps_reach_the_optimum(seed: int, coefficients: Any) -> None:
    """Anchored, with the vertices of a face of the optimum within reach, to 1e-9 of the first loss; and they stop."""
    problem = Problem(seed)
    result = run(
        problem, variant="soft", top_k=6, coefficients=coefficients, lmo=coefficients, inner_steps=100, tolerance=1e-7
    )
    least = problem.least(by_layer=coefficients == "layer")
    assert result.loss is not None
    assert abs(result.loss - least) <= 1e-9 * losses(result)[0]
    assert result.record.ended in ("gap", "stalled")


@pytest.mark.parametrize("seed", SEEDS)
def test_hard_steps_reach_an_optimum_inside_the_hull(seed: int) -> None:
    """There the rate is linear (Guélat & Marcotte 1986)."""
    problem = Problem(seed, k=6, shapes={"a": (2,)})
    inside = [problem.initial, *problem.pool]
    problem.target = {"a": torch.stack([state["a"] for state in inside]).mean(0)}
    result = run(problem, steps=150)
    assert result.loss is not None
    assert result.loss <= 1e-6 * losses(result)[0]


@pytest.mark.parametrize("options", [{}, {"variant": "soft"}, {"lmo": "layer"}, {"coefficients": "layer"}], ids=str)
def test_no_step_makes_the_loss_worse(options: dict[str, Any]) -> None:
    result = run(Problem(5, k=6), steps=30, **options)
    found = losses(result)
    assert all(after <= before + 1e-12 for before, after in pairwise(found))
    assert found[-1] < found[0] / 2


class Between(nn.Module):
    """½θ² of a θ that begins at 1, between candidates at 1 and −1."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(1))


def test_the_papers_simplex_goes_to_and_fro() -> None:
    """With one vertex, it jumps from end to end; anchored, it lands in the middle. Theorem 1 holds all the same."""
    pool = [{"theta": torch.tensor([1.0])}, {"theta": torch.tensor([-1.0])}]

    def loss(model: nn.Module, _: object) -> Tensor:
        return 0.5 * next(model.parameters()).square().sum()

    options: dict[str, Any] = {"variant": "soft", "top_k": 1, "steps": 7}
    paper = fm.frank_wolfe(Between(), pool, loss, [None], simplex="paper", **options)
    assert losses(paper) == [0.5] * 8
    assert [step.vertices for step in paper.steps[:3]] == [[["model1"]], [["initial"]], [["model1"]]]
    gaps = [step.gap for step in paper.steps if step.gap is not None]
    assert min(gaps) == 2.0 <= 0.5 / 7 + 1.0 * 2.0**2 / 2  # subopt / T + L · diam² / 2
    anchored = fm.frank_wolfe(Between(), pool, loss, [None], **options)
    assert anchored.loss == 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_theorem_1(seed: int, k: int) -> None:
    """min gap ≤ subopt / T + L diam² / 2 of the paper's simplex, and θ_t is of the chosen vertices alone."""
    problem = Problem(seed)
    result = run(problem, variant="soft", simplex="paper", top_k=k, steps=12, inner_steps=100)
    gaps = [step.gap for step in result.steps if step.gap is not None]
    subopt = result.steps[0].loss - problem.least()
    assert min(gaps) <= subopt / len(gaps) + problem.curvature() / 2
    last = [step for step in result.steps if step.vertices][-1]
    (row,) = result.coefficients.values()
    assert {name for name, value in row.items() if value} <= {*last.vertices[0]}


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6), st.sampled_from(["anchored", "paper"]))
def test_the_projection_is_the_nearest_point(point: list[float], simplex: Simplex) -> None:
    """⟨p − π(p), v − π(p)⟩ ≤ 0 for every vertex v of the set, to which π(p) belongs."""
    p = torch.tensor([point], dtype=torch.float64)
    found = project(p, simplex)
    assert found.min() >= 0
    assert abs(found.sum() - 1) < 1e-12 or (simplex == "anchored" and found.sum() < 1)
    vertices = torch.eye(len(point), dtype=torch.float64)
    if simplex == "anchored":
        vertices = torch.cat([vertices, torch.zeros_like(vertices[:1])])
    assert ((vertices - found) @ (p - found).T).max() < 1e-12


@pytest.mark.parametrize(
    ("function", "slope", "best"),
    [
        (lambda x: (x - 0.3) ** 2, -0.6, 0.3),
        (lambda x: (x - 1.7) ** 2, -3.4, 1.0),
        (lambda x: -x, -1.0, 1.0),
        (lambda x: x, 1.0, 0.0),
        (lambda x: abs(x - 0.6), -1.0, 0.6),
        (lambda x: (x - 0.2) ** 4, -4 * 0.2**3, 0.2),
        (lambda x: (x - 0.4) ** 2 if x < 0.9 else float("nan"), -0.8, 0.4),
        (lambda x: 5.0 if x else 0.0, -1.0, 0.0),
        (lambda x: -x + 10 * max(0, x - 0.9) ** 2, -1.0, 0.95),
    ],
    ids=["parabola", "beyond", "line", "uphill", "kink", "flat", "not a number", "no descent", "near the end"],
)
def test_line_search(function: Any, slope: float, best: float) -> None:
    asked: list[float] = []
    step, value = line_search(lambda x: (asked.append(x), function(x))[1], function(0.0), slope)
    assert abs(step - best) < 2e-3
    assert value == function(step)
    assert len(asked) <= 26
    if best == 0.3:
        assert step == pytest.approx(0.3, abs=1e-15)
        assert len(asked) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_in_low_precision(dtype: torch.dtype) -> None:
    """Gradients are summed in float32, whatever the model's dtype; the optimum is reached to the dtype's precision."""
    problem = Problem(0, dtype=dtype)
    result = run(problem, variant="soft", top_k=6, steps=10)
    assert result.loss is not None
    assert result.loss - problem.least() <= (0.02 if dtype == torch.bfloat16 else 1e-4) * losses(result)[0]
    assert all(t.dtype == dtype for t in result.state_dict.values())


def test_sums_of_many_batches_are_not_rounded_to_the_models_dtype() -> None:
    """1000 gradients of one sixteenth and one of 1 make the gradient 63.5 / 1001, not what bfloat16 sums stop at."""
    from fastmerge.fw.objective import Gradient, Objective

    model = Weights({"a": torch.zeros(1, dtype=torch.bfloat16)})
    gradient = Gradient(dict(model.named_parameters()))
    objective = Objective(lambda m, batch: (m.a * batch).sum(), [torch.tensor(1.0)] + [torch.tensor(0.0625)] * 1000)
    with gradient.watching():
        objective.gradient(model, gradient)
    assert gradient.of["a"].item() == pytest.approx(63.5 / 1001, rel=1e-4)
    assert model.a.grad is None


class Deep(nn.Module):
    """Layers whose activations are computed again in the backward pass, where asked for; the first is used twice."""

    def __init__(self, seed: int, again: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        for layer in [*self.layers, self.layers[0]]:
            x = torch.tanh(layer(x) if self.again is None else checkpoint(layer, x, use_reentrant=self.again))
        return x


def deep_loss(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x).float() - 0.3).square().mean()


def deep_run(again: bool | None = None, loss: Any = deep_loss) -> fm.fw.Result:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    pool = [Deep(seed).state_dict() for seed in range(1, 5)]
    return fm.frank_wolfe(Deep(0, again), pool, loss, [x], variant="soft", steps=2, inner_steps=4)


@pytest.mark.parametrize("again", [False, True])
def test_gradient_checkpointing(again: bool) -> None:
    """Neither way of it changes a bit, though a layer's gradient then comes in parts."""
    plain, checked = deep_run(), deep_run(again)
    assert plain.coefficients == checked.coefficients
    assert all(torch.equal(t, plain.state_dict[n]) for n, t in checked.state_dict.items())
    assert plain.loss is not None
    assert plain.loss < plain.steps[0].loss


@pytest.mark.parametrize("again", [None, False, True])
def test_mixed_precision(again: bool | None) -> None:
    """autocast in the loss, or around the whole run, whose cast weights must not outlive a change of the weights."""

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return deep_loss(model, x)

    within = deep_run(again, loss)
    with torch.autocast("cpu", torch.bfloat16):
        around = deep_run(again)
    assert within.coefficients == around.coefficients
    assert within.loss == around.loss
    assert within.loss == pytest.approx(deep_run().loss, rel=0.05)


def test_mixed_precision_around_a_merge_fn() -> None:
    def shrunk(theta: Tensor, *_: object) -> Tensor:
        return theta / 2

    with torch.autocast("cpu", torch.bfloat16):
        model = Deep(0)
        result = fm.frank_wolfe(
            model, [Deep(1).state_dict()], deep_loss, [torch.ones(5, 6)], merge_fn=shrunk, step=0.5, steps=1
        )
        torch.clear_autocast_cache()
        assert result.loss == deep_loss(model, torch.ones(5, 6)).item()


def test_coefficients_stay_in_the_hull_where_shares_round_above_one() -> None:
    shares = torch.tensor([[0.5, 0.5000000000000002]], dtype=torch.float64)
    found = blend(torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64), torch.tensor([[0, 1]]), shares)
    assert found.min() == 0
    assert abs(found.sum() - 1) < 1e-15
