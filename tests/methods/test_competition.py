"""PCB-Merging, TSV-Merge, Iso-C and Iso-CTS: by hand, and in float64 by definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import fastmerge as fm
from fastmerge.errors import InputError
from fastmerge.methods import pcb

Array = NDArray[np.float64]
Rows = list[list[float]]


def merged(method: str, *taus: Rows, **params: Any) -> Any:
    base = {"w": torch.zeros(len(taus[0]), len(taus[0][0]))}
    named = {f"m{k}": {"w": torch.tensor(tau)} for k, tau in enumerate(taus)}
    return fm.merge_state_dicts(method, base, named, **params).state_dict["w"].tolist()


def test_pcb_by_hand() -> None:
    """Scores fall with the magnitude: at density 1 all but the smallest weigh. Against Σ τ there is no score."""
    assert merged("pcb", [[4.0, 2, 1, 0.5]], density=0.5) == [[4, 0, 0, 0]]  # s = 1, 0
    assert merged("pcb", [[4.0, 2, 1, 0.5]], density=0.5, scale=2) == [[8, 0, 0, 0]]
    assert merged("pcb", [[4.0, 2, 1, 0.5]], density=1) == [[4, 2, 1, 0]]
    assert merged("pcb", [[4.0, 2, 1, 0]], [[-1.0, 1, 0, 0]], density=1)[0][0] == 4
    assert merged("pcb", [[4.0, 2, 1, 0.5]], density=0) == [[0, 0, 0, 0]]


def balanced(taus: list[Array], density: float) -> Array:
    """The released code's formulas on one tensor, with scores below zero out of the competition."""
    shares, clamped = [], []
    for tau in taus:
        sizes = np.sort(np.abs(tau), axis=None)
        out = sizes.size // pcb.OUTLIERS
        least, most = sizes[out], sizes[sizes.size - 1 - out]
        size = np.clip(np.abs(tau), least, most)
        clamped.append(np.sign(tau) * size)
        scores = np.exp(len(taus) * ((size - least) / (most - least)) ** 2) * np.tanh(clamped[-1] * sum(taus))
        inorder = np.sort(np.maximum(scores, 0), axis=None)
        low, high = inorder[round(scores.size * (1 - density))], inorder[-1]
        shares.append((np.maximum(scores, low) - low) / (high - low))
    total = sum(shares)
    return np.asarray(sum(s * t for s, t in zip(shares, clamped, strict=True)) / np.where(total > 0, total, 1))


def states(shapes: dict[str, tuple[int, ...]], count: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    generator = torch.Generator().manual_seed(count)
    draw = [{n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()} for _ in range(5)]
    return draw[-1], [{n: draw[-1][n] + 0.3 * t for n, t in m.items()} for m in draw[:count]]


@pytest.mark.parametrize("density", [0.1, 0.25])
@pytest.mark.parametrize("outliers", [50, 10_000])
def test_pcb_equals_float64(outliers: int, density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pcb, "OUTLIERS", outliers)
    base, models = states({"w": (40, 50), "vector": (100,)}, 3)
    result = fm.merge_state_dicts("pcb", base, {f"m{k}": m for k, m in enumerate(models)}, density=density)
    for name, tensor in result.state_dict.items():
        expected = balanced([(m[name] - base[name]).numpy() for m in models], density)
        np.testing.assert_allclose((tensor - base[name]).numpy(), expected, atol=1e-12, err_msg=name)


def test_tsvm_by_hand() -> None:
    """Orthogonal tasks add up, equal ones count once, none does not count; each keeps half of two singular vectors."""
    assert np.asarray(merged("tsvm", [[3.0, 0], [0, 0]], [[0.0, 0], [0, 2]])) == pytest.approx(np.diag([3, 2]))
    assert np.asarray(merged("tsvm", [[3.0, 0], [0, 2]], [[3.0, 0], [0, 2]])) == pytest.approx(
        np.diag([3, 0]), abs=1e-6
    )
    assert np.asarray(merged("tsvm", [[3.0, 0], [0, 2]], [[0.0, 0], [0, 0]], rank=1)) == pytest.approx(
        np.diag([3, 2]), abs=1e-6
    )


def singular(tau: Array, rank: int) -> tuple[Array, Array, Array]:
    u, sigma, v = np.linalg.svd(tau, full_matrices=False)
    return u[:, :rank], sigma[:rank], v[:rank].T


def white(x: Array) -> Array:
    """By the eigenvectors of its Gram matrix."""
    values, vectors = np.linalg.eigh(x.T @ x)
    return np.asarray(x @ vectors @ np.diag(values**-0.5) @ vectors.T)


def beside(parts: list[tuple[Array, Array, Array]]) -> tuple[Array, Array, Array]:
    """Left vectors, values and right vectors of all, the vectors whitened."""
    return (
        white(np.concatenate([u for u, _, _ in parts], axis=1)),
        np.concatenate([sigma for _, sigma, _ in parts]),
        white(np.concatenate([v for _, _, v in parts], axis=1)),
    )


def tsvm(taus: list[Array], rank: float | None = None) -> Array:
    kept = max(1, int(min(taus[0].shape) * (rank or 1 / len(taus))))
    u, sigma, v = beside([singular(tau, kept) for tau in taus])
    return u @ np.diag(sigma) @ v.T


def iso_c(taus: list[Array]) -> Array:
    u, sigma, v = singular(np.sum(taus, axis=0), min(taus[0].shape))
    return np.asarray(sigma.mean() * u @ v.T)


def iso_cts(taus: list[Array], common: float = 0.8) -> Array:
    full = min(taus[0].shape)
    own = min(full // len(taus), round((full - int(full * common)) / len(taus)))
    shared = singular(np.sum(taus, axis=0), full - len(taus) * own)
    u, sigma, v = beside([shared, *(singular(tau - shared[0] @ shared[0].T @ tau, own) for tau in taus)])
    return np.asarray(sigma.mean() * u @ v.T)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("tsvm", {}),
        ("tsvm", {"rank": 0.1}),
        ("iso_c", {}),
        ("iso_cts", {}),
        ("iso_cts", {"common": 0.5}),
        ("iso_cts", {"common": 0.0}),
        ("iso_cts", {"common": 1.0}),
    ],
)
def test_singular_vectors_equal_float64(method: str, params: dict[str, float]) -> None:
    """Matrices and stacks of them; what is no matrix, or an embedding, is averaged."""
    shapes = {"w": (24, 40), "tall": (50, 9), "m.experts.w": (3, 8, 10), "embed.weight": (20, 8), "bias": (30,)}
    base, models = states(shapes, 3)
    result = fm.merge_state_dicts(method, base, {f"m{k}": m for k, m in enumerate(models)}, scale=0.8, **params)
    by_definition: Callable[..., Array] = {"tsvm": tsvm, "iso_c": iso_c, "iso_cts": iso_cts}[method]
    for name, shape in shapes.items():
        taus = [(m[name] - base[name]).numpy() for m in models]
        if name in ("embed.weight", "bias"):
            expected = np.mean(taus, axis=0)
        else:
            stacks = [tau.reshape(-1, *shape[-2:]) for tau in taus]
            each = [by_definition(list(own), **params) for own in zip(*stacks, strict=True)]
            expected = np.stack(each).reshape(shape)
        actual = (result.state_dict[name] - base[name]).numpy()
        np.testing.assert_allclose(actual, 0.8 * expected, atol=1e-12, err_msg=name)


def test_iso_by_hand() -> None:
    """Directions of the sum all get the mean singular value; what is of no task's has none, with no task or model."""
    assert np.asarray(merged("iso_c", [[3.0, 0], [0, 1]])) == pytest.approx(np.diag([2, 2]), abs=1e-6)
    assert np.asarray(merged("iso_c", [[3.0, 0], [0, 0]], [[1.0, 0], [0, 0]])) == pytest.approx(np.diag([4, 0]))
    for method in ("iso_c", "iso_cts"):
        assert merged(method, [[1.0, 2], [3, 4]], [[-1.0, -2], [-3, -4]]) == [[0, 0], [0, 0]]


def test_iso_cts_gives_each_task_what_the_common_directions_leave_out() -> None:
    """Of four directions two are common, those of the sum's 5 and 4, and each task has one of its own."""
    taus = [np.diag(values).tolist() for values in ([5.0, 0, 3, 0], [0, 4.0, 0, 1])]
    assert np.asarray(merged("iso_cts", *taus, common=0.5)) == pytest.approx(3.25 * np.eye(4), abs=1e-6)
    equal = [np.diag([5.0, 4, 3, 1]).tolist()] * 2
    found = np.asarray(merged("iso_cts", *equal, common=0.5))
    assert found == pytest.approx(np.diag([6, 6, 6, 0]), abs=1e-5)  # 10, 8 and twice 3: one direction, counted once


def test_shares_of_singular_vectors_have_bounds() -> None:
    with pytest.raises(InputError, match="rank"):
        merged("tsvm", [[1.0]], rank=0)
    with pytest.raises(InputError, match="common"):
        merged("iso_cts", [[1.0]], common=1.1)


def test_tsvm_takes_the_share_as_it_is_written() -> None:
    """0.29 of 100, which floating point makes 28.99…"""
    found = merged("tsvm", [[0.0] * 100] * 100, torch.arange(1.0, 101).diag().tolist(), rank=0.29)
    assert int((torch.tensor(found).diagonal() > 0.5).sum()) == 29
