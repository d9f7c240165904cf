"""TIES, DARE, DELLA, Breadcrumbs, TALL-masks, slerp: by hand, and against an implementation of their own."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import independent
import numpy as np
import pytest
import torch
from folders import read, write
from tensors import assert_same_bits, grid

import fastmerge as fm
from fastmerge.errors import InputError
from fastmerge.methods import _sparse

SHAPES = {"square": (24, 40), "row": (1, 37), "column": (29, 1), "vector": (101,), "stack": (3, 4, 5), "one": (1,)}
SHAPES |= {"scalar": (), "empty": (0, 3)}

# τ of three models on a 4 × 4 tensor, base zero.
ONE = [[8.0, -7, 6, -5], [4, -3, 2, -1], [0.5, 0.5, 0.5, 0.5], [0, 0, 0, 0]]
TWO = [[-1.0, -2, 3, 4], [-5, -6, 7, 8], [-0.25, 1, 0.25, 1], [0, 0, 0, 9]]
THREE = [[1.0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]


def square(rows: list[list[float]]) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(rows)}


BY_HAND = {"one": square(ONE), "two": square(TWO), "three": square(THREE)}
ZERO = square([[0.0] * 4] * 4)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        # The top 4: 8 −7 6 −5 | 8 7 9, and −6 (rank 4; 6 has no other) | the first four ones.
        ({"merge": "sum"}, [[9.0, 0, 7, 0], [0, 0, 7, 8], [0, 0, 0, 0], [0, 0, 0, 9]]),
        ({"merge": "mean"}, [[4.5, 0, 3.5, 0], [0, 0, 7, 8], [0, 0, 0, 0], [0, 0, 0, 9]]),
        ({"merge": "mean", "scale": 2}, [[9.0, 0, 7, 0], [0, 0, 14, 16], [0, 0, 0, 0], [0, 0, 0, 18]]),
    ],
)
def test_ties_by_hand(params: dict[str, Any], expected: list[list[float]]) -> None:
    """Where one and three disagree one is larger, except at index 1 and 3, where its −7 and −5 win alone."""
    expected[0][1], expected[0][3] = (-7.0 * params.get("scale", 1), -5.0 * params.get("scale", 1))
    expected[1][1] = -6.0 * params.get("scale", 1)
    merged = fm.merge_state_dicts("ties", ZERO, BY_HAND, density=0.25, **params).state_dict["w"]
    assert merged.tolist() == expected


def test_breadcrumbs_by_hand() -> None:
    """Of 16, the int(0.15 · 16) = 2 largest go and the next int(0.25 · 16) = 4 stay."""
    merged = fm.merge_state_dicts("breadcrumbs", ZERO, {"one": square(ONE)}, density=0.25, gamma=0.15).state_dict["w"]
    assert merged.tolist() == [[0, 0, 6, -5], [4, -3, 0, 0], [0] * 4, [0] * 4]


def test_tall_masks_by_hand() -> None:
    """τ_m = τ_one + τ_two = 7 −9 9 −1 …: one keeps where |τ| ≥ 0.5 |τ_m − τ|, that is, ≥ half of |τ_two|."""
    pair = {name: BY_HAND[name] for name in ("one", "two")}
    result = fm.merge_state_dicts("tall_masks", ZERO, pair, threshold=0.5)
    one, two = torch.tensor(ONE), torch.tensor(TWO)
    assert result.stats["rescalers"] == {"one": 1.0, "two": 1.0}
    for name, own, other in (("one", one, two), ("two", two, one)):
        expected = torch.where(own.abs() >= 0.5 * other.abs(), one + two, 0)
        assert torch.equal(result.task(name)["w"], expected), name


def test_slerp_by_hand() -> None:
    """A third of a quarter turn, and the middle of nearly parallel vectors, which is straight."""
    base, model = {"w": torch.tensor([2.0, 0, 0, 0])}, {"w": torch.tensor([0.0, 2, 0, 0])}
    merged = fm.merge_state_dicts("slerp", base, {"m": model}, t=1 / 3).state_dict["w"]
    assert merged.tolist() == pytest.approx([3**0.5, 1.0, 0, 0])
    near = fm.merge_state_dicts("slerp", base, {"m": {"w": torch.tensor([4.0, 0.01, 0, 0])}}, t=0.5).state_dict["w"]
    assert near.tolist() == pytest.approx([3.0, 0.005, 0, 0])


CASES: list[tuple[str, dict[str, Any]]] = [
    *(
        ("ties", {"density": d, "vote": v, "merge": m, "scope": s})
        for d, v, m, s in product(
            (0.2, [0.3, 0.07, 1.0]),
            ("weighted", "unweighted", "count"),
            ("weighted_mean", "mean"),
            ("tensor", "global"),
        )
    ),
    *(("ties", {"density": d, "scope": s}) for d in (0.0, 1.0) for s in ("tensor", "global")),
    *(("dare_linear", {"density": d, "rescale": r}) for d in (0.0, 0.3, 1.0) for r in ("density", "l1")),
    ("dare_linear", {"density": [0.5, 0.25, 0.75], "normalize": True, "rescale": "density", "seed": 7}),
    *(("dare_ties", {"density": 0.4, "rescale": "l1", "merge": m}) for m in ("sum", "weighted_mean")),
    *(("della", {"density": d, "epsilon": e, "rescale": "density"}) for d, e in ((0.5, 0.1), (0.1, 0.1), (1.0, 0.0))),
    ("della_linear", {"density": 0.6, "epsilon": 0.2, "rescale": "l1", "normalize": True}),
    *(("breadcrumbs", {"density": d, "gamma": g}) for d, g in ((0.9, 0.01), (0.3, 0.2), (0.0, 0.5), (0.9, 0.1))),
    ("breadcrumbs_ties", {"density": 0.5, "gamma": 0.1, "merge": "mean", "vote": "count"}),
]


def name(case: object) -> str:
    return case if isinstance(case, str) else "-".join(str(v) for v in case.values()) if isinstance(case, dict) else ""


@pytest.fixture(scope="module")
def checkpoints() -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    """On a grid so coarse that a third of what is kept equals the threshold, and sums are exact."""
    draw = {
        label: {
            t: grid(int(np.prod(shape)), torch.float32, 31 * i + j).view(shape)
            for j, (t, shape) in enumerate(SHAPES.items())
        }
        for i, label in enumerate(("base", "m0", "m1", "m2"))
    }
    return draw.pop("base"), draw


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("method", "params"), CASES, ids=name)
def test_equals_an_independent_implementation(
    method: str,
    params: dict[str, Any],
    dtype: torch.dtype,
    checkpoints: tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]],
) -> None:
    params = {"weights": [0.5, 2.0, 1.0], "scale": 0.5} | params
    own = {n: t.to(dtype) for n, t in checkpoints[0].items()}
    models = {label: {n: t.to(dtype) for n, t in state.items()} for label, state in checkpoints[1].items()}
    result = fm.merge_state_dicts(method, own, models, **params).state_dict
    wide = {label: {n: t.double().numpy() for n, t in state.items()} for label, state in models.items()}
    expected = independent.merge(method, {n: t.double().numpy() for n, t in own.items()}, wide, **params)
    tolerance = {torch.bfloat16: 2.0**-8, torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
    for tensor, values in expected.items():
        error = np.abs(result[tensor].double().numpy() - values)
        bound = tolerance * np.maximum(np.abs(values), 0.5)
        assert (error <= bound).all(), f"{tensor}: {error.max()} at {error.argmax()}"


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("ties", {"density": 0.3, "modulators": True}),
        ("ties", {"preset": "paper"}),
        ("dare_ties", {"density": 0.5, "rescale": "l1", "modulators": True}),
        ("della", {"density": 0.5, "epsilon": 0.2, "rescale": "l1"}),
        ("breadcrumbs", {"density": 0.7, "gamma": 0.1}),
        ("tall_masks", {}),
    ],
    ids=name,
)
def test_streamed_in_small_chunks(method: str, params: dict[str, Any], tmp_path: Path) -> None:
    """From disk, in chunks that cut tensors and rows, what is merged in memory at once; and the same artefact."""
    shapes = {"a": (517, 301), "b": (65_536,), "c": (3, 70_001), "d": (5, 7)}
    states = {
        label: {
            t: torch.randn(shape, generator=torch.Generator().manual_seed(9 * i + j)).bfloat16()
            for j, (t, shape) in enumerate(shapes.items())
        }
        for i, label in enumerate(("base", "m0", "m1"))
    }
    folders = {label: write(tmp_path / label, state) for label, state in states.items()}
    base = folders.pop("base")
    memory = "16MiB" if method == "della" else "8MiB"  # which ranks long rows together until they end on a whole byte
    fm.merge(method, base, folders, tmp_path / "out", params, memory=memory)
    in_memory = fm.merge_state_dicts(method, states.pop("base"), states, **params)
    if params.get("modulators") or method == "tall_masks":
        for task in states:
            fm.task(tmp_path / "out", task, tmp_path / task / "again")
            for tensor, value in read(tmp_path / task / "again").items():
                assert torch.allclose(value.float(), in_memory.task(task)[tensor].float(), rtol=2**-6, atol=2**-6), (
                    tensor
                )
        return
    for tensor, value in read(tmp_path / "out").items():
        assert_same_bits(value, in_memory.state_dict[tensor], tensor)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della_linear", "della"])
@pytest.mark.parametrize("shape", [(517, 301), (70_001,), (0, 3)], ids=str)
def test_masks_kept_until_the_merge_are_those_drawn_twice(
    method: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, *models = ({"w": torch.randn(shape, generator=torch.Generator().manual_seed(i))} for i in range(4))
    named = dict(zip("abc", models, strict=True))
    merged = []
    for room in (_sparse.MASKS, 0):
        monkeypatch.setattr(_sparse, "MASKS", room)
        merged.append(fm.merge_state_dicts(method, base, named, density=0.6, rescale="l1").state_dict["w"])
    assert_same_bits(*merged, "w")


def test_order_of_models_does_not_move_the_drops() -> None:
    """A model's dropped elements depend on seed, method, tensor and its name alone."""
    base = {"w": torch.zeros(1000)}
    models = {name: {"w": torch.full((1000,), value)} for name, value in (("a", 1.0), ("b", 16.0))}
    first = fm.merge_state_dicts("dare_linear", base, models, density=0.5).state_dict["w"]
    again = fm.merge_state_dicts("dare_linear", base, dict(reversed(models.items())), density=0.5).state_dict["w"]
    other = fm.merge_state_dicts("dare_linear", base, models, density=0.5, seed=1).state_dict["w"]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert set(first.tolist()) == {0.0, 2.0, 32.0, 34.0}


OPPOSITE = {"normalize": True, "weights": [1, -1]}


@pytest.mark.parametrize(
    ("method", "params", "said"),
    [
        ("ties", {"density": 1.5}, "density.*1.5.*from 0 to 1"),
        ("ties", {"density": [0.1]}, "1 density for 2 models"),
        ("ties", {"density": {"a": 0.1, "x": 0.2}}, "density are for a, x"),
        ("ties", {"vote": "majority"}, "vote"),
        ("ties", {"preset": "papers"}, "preset"),
        ("ties", {"densty": 0.1}, "did you mean 'density'"),
        ("breadcrumbs", {"density": 0.9, "gamma": 0.2}, "make more than 1"),
        ("della", {"density": 0.9, "epsilon": 0.2}, "epsilon 0.2 of a is too large.*at most 0.1"),
        ("dare_ties", {"rescale": "l2"}, "rescale"),
        ("dare_linear", {"density": float("nan")}, "density"),
        *((method, OPPOSITE, "weights sum to zero") for method in ("breadcrumbs", "dare_linear", "della_linear")),
        ("slerp", {"t": 0.5}, "slerp merges 1 model, these are 2"),
        ("tall_masks", {"threshold": -1}, "threshold"),
    ],
)
def test_bad_parameters(method: str, params: dict[str, Any], said: str) -> None:
    base = {"w": torch.zeros(3)}
    with pytest.raises(InputError, match=said) as caught:
        fm.merge_state_dicts(method, base, {"a": base, "b": base}, **params)
    assert not caught.value.problems[0].startswith("combine")  # before any work
    assert len(caught.value.problems) <= 2
