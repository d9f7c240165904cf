"""Model Stock, NuSLERP, Multi-SLERP, Karcher mean: by hand, by definition, and in float64 on whole vectors."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import fastmerge as fm
from fastmerge.errors import InputError

Array = NDArray[np.float64]
Rows = list[list[float]]


def merged(method: str, base: Rows, *models: Rows, **params: Any) -> Any:
    named = {f"m{k}": {"w": torch.tensor(rows)} for k, rows in enumerate(models)}
    return fm.merge_state_dicts(method, {"w": torch.tensor(base)}, named, **params).state_dict["w"].tolist()


ZERO: Rows = [[0.0, 0], [0, 0]]
R2, R3 = 2**0.5, 3**0.5


@pytest.mark.parametrize(
    ("method", "params", "models", "expected"),
    [
        # cos = 15/25: t = 1.2/1.6 of the mean 4, 2; and a row of right angles, where base stays.
        ("model_stock", {"filter_wise": True}, ([[5.0, 0], [3, 0]], [[3.0, 4], [0, 3]]), [[3, 1.5], [0, 0]]),
        ("model_stock", {}, ([[5.0, 0], [0, 0]], [[3.0, 4], [0, 0]]), [[3, 1.5], [0, 0]]),
        # Opposite: 1 + cos = 0, so base.
        ("model_stock", {}, ([[5.0, 0], [0, 0]], [[-3.0, 0], [0, 0]]), ZERO),
        # A third of a quarter turn; halves of rows, the second parallel; the same by columns.
        ("nuslerp", {"weights": [2, 1]}, ([[2.0, 0], [0, 0]], [[0.0, 2], [0, 0]]), [[R3, 1], [0, 0]]),
        ("nuslerp", {"nuslerp_flatten": False}, ([[2.0, 0], [2, 0]], [[0.0, 2], [4, 0]]), [[R2, R2], [3, 0]]),
        (
            "nuslerp",
            {"nuslerp_flatten": False, "nuslerp_row_wise": True},
            ([[2.0, 2], [0, 0]], [[0.0, 4], [2, 0]]),
            [[R2, 3], [R2, 0]],
        ),
        ("nuslerp", {}, ([[0.0, 0], [0, 0]], [[0.0, 2], [0, 0]]), [[0, 1], [0, 0]]),  # zero has no direction: straight
        ("multislerp", {}, ([[3.0, 0], [0, 0]], [[0.0, 1], [0, 0]]), [[R2, R2], [0, 0]]),
        ("multislerp", {}, ([[3.0, 0], [0, 0]], [[-1.0, 0], [0, 0]]), [[1, 0], [0, 0]]),  # opposite: straight
        ("multislerp", {"weights": [3, 1]}, ([[1.0, 0], [0, 0]], [[-1.0, 0], [0, 0]]), [[1, 0], [0, 0]]),
        (
            "multislerp",
            {"normalize_weights": False},
            ([[3.0, 0], [0, 0]], [[0.0, 1], [0, 0]]),
            [[2 * R2, 2 * R2], [0, 0]],
        ),
        ("karcher", {}, ([[1.0, 0], [0, 0]], [[0.0, 3], [0, 0]]), [[R2, R2], [0, 0]]),
        ("karcher", {}, ([[2.0, 0], [0, 0]], [[0.0, 0], [0, 0]]), [[1, 0], [0, 0]]),  # zero lends its length alone
        ("karcher", {}, (ZERO, ZERO), ZERO),
        # One is opposite to the others, so that no arc to it is the shortest.
        ("karcher", {}, ([[1.0, 0], [0, 0]], [[2.0, 0], [0, 0]], [[-0.7, 0], [0, 0]]), [[3.7 / 3, 0], [0, 0]]),
    ],
)
def test_by_hand(method: str, params: dict[str, Any], models: tuple[Rows, ...], expected: Rows) -> None:
    assert np.asarray(merged(method, ZERO, *models, **params)) == pytest.approx(np.asarray(expected), abs=1e-6)


@pytest.mark.parametrize("method", ["nuslerp", "multislerp"])
def test_task_vectors_by_hand(method: str) -> None:
    """The middle of 2, 0 and 0, 2, seen from base."""
    base, one, two = [[1.0, 5]], [[3.0, 5]], [[1.0, 7]]
    assert merged(method, base, one, two, task_vectors=True)[0] == pytest.approx([1 + R2, 5 + R2])


def stock(taus: list[Array]) -> Array:
    """Model Stock of vectors, from the angles between all pairs."""
    units = [tau / np.linalg.norm(tau) for tau in taus]
    cosine = np.mean([u @ v for i, u in enumerate(units) for v in units[:i]])
    t = len(taus) * cosine / (1 + (len(taus) - 1) * cosine)
    return np.asarray(t * np.mean(taus, axis=0))


def arc(weights: list[float], ends: list[Array]) -> Array:
    """NuSLERP of two vectors, the lengths of which are interpolated with their directions."""
    first, second = ends
    t = weights[1] / sum(weights)
    angle = np.arccos(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
    return np.asarray((np.sin((1 - t) * angle) * first + np.sin(t * angle) * second) / np.sin(angle))


def barycentre(weights: list[float], vectors: list[Array]) -> Array:
    """Multi-SLERP, tangent step and all: it moves by nothing but rounding."""
    shares = np.array(weights) / sum(weights)
    norms = [np.linalg.norm(v) for v in vectors]
    units = [v / n for v, n in zip(vectors, norms, strict=True)]
    mean = sum(w * u for w, u in zip(shares, units, strict=True))
    mean /= np.linalg.norm(mean)
    tangent = sum(w * (u - (u @ mean) * mean) for w, u in zip(shares, units, strict=True))
    step = np.linalg.norm(tangent)
    assert step < 1e-12
    return np.asarray((shares @ norms) * mean)


SHAPES = {"w": (24, 40), "conv": (6, 5, 3, 3), "vector": (101,)}


def states(count: int, dtype: torch.dtype = torch.float64) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    generator = torch.Generator().manual_seed(count)
    tensors = [
        {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}
        for _ in range(count + 1)
    ]
    shared = {name: 0.5 * t for name, t in tensors[0].items()}
    models = [{n: (shared[n] + t * (0.5 + 0.1 * k)).to(dtype) for n, t in m.items()} for k, m in enumerate(tensors[1:])]
    return {n: (0.1 * t).to(dtype) for n, t in tensors[0].items()}, models


CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("model_stock", 2, {}),
    ("model_stock", 4, {"filter_wise": True}),
    ("nuslerp", 2, {"weights": [0.3, 0.9]}),
    ("nuslerp", 2, {"weights": [1, 2], "task_vectors": True, "nuslerp_flatten": False}),
    ("nuslerp", 2, {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("multislerp", 3, {"weights": [0.2, 0.5, 0.9]}),
    ("multislerp", 5, {"task_vectors": True}),
]


@pytest.mark.parametrize(("method", "count", "params"), CASES)
def test_equals_float64(method: str, count: int, params: dict[str, Any]) -> None:
    """Whole tensors, or each of their rows, columns and filters, by explicit vectors; coefficients are float32."""
    base, models = states(count)
    result = fm.merge_state_dicts(method, base, {f"m{k}": m for k, m in enumerate(models)}, **params).state_dict
    for name, shape in SHAPES.items():
        from_base = method == "model_stock" or params.get("task_vectors", False)
        origin = base[name].numpy() if from_base else np.zeros(shape)
        vectors = [m[name].numpy() - origin for m in models]
        if params.get("nuslerp_row_wise"):
            parts = [v.reshape(shape[0], -1).T if v.ndim > 1 else v[None] for v in vectors]
        elif params.get("filter_wise"):
            parts = [v.reshape(shape[0], -1) if v.ndim > 1 else v[None] for v in vectors]
        elif params.get("nuslerp_flatten") is False:
            parts = [v.reshape(-1, shape[-1]) for v in vectors]
        else:
            parts = [v.reshape(1, -1) for v in vectors]
        weights = params.get("weights", [1.0] * count)
        how = {
            "model_stock": stock,
            "nuslerp": partial(arc, weights),
            "multislerp": partial(barycentre, weights),
        }
        rows = np.stack([how[method](list(part)) for part in zip(*parts, strict=True)])
        by_column = params.get("nuslerp_row_wise") and len(shape) > 1
        expected = origin + (rows.T if by_column else rows).reshape(shape)
        np.testing.assert_allclose(result[name].numpy(), expected, atol=1e-6, err_msg=name)


@given(st.integers(2, 6), st.sampled_from([torch.bfloat16, torch.float32, torch.float64]))
def test_arcs_from_the_karcher_mean_sum_to_zero(count: int, dtype: torch.dtype) -> None:
    """The definition; and its length is the mean of lengths."""
    _, models = states(count, dtype)
    out = {n: t.double() for n, t in models[0].items()}  # a base that lends its dtype, so that nothing is rounded
    result = fm.merge_state_dicts("karcher", out, {f"m{k}": m for k, m in enumerate(models)}, max_iter=100).state_dict
    for name in ("w", "conv", "vector"):
        vectors = [m[name].double().numpy().ravel() for m in models]
        mean = result[name].numpy().ravel()
        assert np.linalg.norm(mean) == pytest.approx(np.mean([np.linalg.norm(v) for v in vectors]), rel=1e-6)
        mean = mean / np.linalg.norm(mean)
        arcs = []
        for vector in vectors:
            unit = vector / np.linalg.norm(vector)
            angle = np.arccos(np.clip(unit @ mean, -1, 1))
            arcs.append(angle / np.sin(angle) * (unit - np.cos(angle) * mean))
        assert np.linalg.norm(np.mean(arcs, axis=0)) < 3e-5, name


@pytest.mark.parametrize("method", ["nuslerp", "multislerp", "karcher"])
def test_copies_of_a_model_are_that_model(method: str) -> None:
    """Parallel vectors."""
    _, models = states(2, torch.float32)
    result = fm.merge_state_dicts(method, None, {"one": models[0], "same": models[0]}).state_dict
    for name, tensor in models[0].items():
        torch.testing.assert_close(result[name], tensor, rtol=3e-7, atol=0)


@pytest.mark.parametrize(
    ("method", "params", "said"),
    [
        ("model_stock", {}, "model_stock merges 2 or more models, these are 1 .m0."),
        ("nuslerp", {}, "nuslerp merges 2 models, these are 1"),
    ],
)
def test_too_few_models(method: str, params: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        merged(method, ZERO, ZERO, **params)


@pytest.mark.parametrize("weights", [[1, -1], [0.3, -0.1 - 0.2]], ids=["zero", "rounded"])
def test_opposite_weights(weights: list[float]) -> None:
    for method in ("nuslerp", "multislerp"):
        with pytest.raises(InputError, match="sum to zero"):
            merged(method, ZERO, ZERO, ZERO, weights=weights)


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=6).filter(lambda values: min(map(abs, values)) > 1e-3))
def test_karcher_of_numbers_has_their_mean_length(values: list[float]) -> None:
    """Directions on a line are equal or opposite."""
    found = float(np.asarray(merged("karcher", [[0.0]], *[[[value]] for value in values])).item())
    assert abs(found) == pytest.approx(sum(map(abs, values)) / len(values), rel=1e-5)
