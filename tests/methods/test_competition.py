"""PCB-Merging and TSV-Merge: by hand, and in float64 by definition."""

from __future__ import annotations

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


def whitened(taus: list[Array], rank: int) -> Array:
    """By eigenvectors of the Gram matrices of singular vectors."""
    parts = [np.linalg.svd(tau, full_matrices=False) for tau in taus]
    u = np.concatenate([u[:, :rank] for u, _, _ in parts], axis=1)
    v = np.concatenate([vt[:rank].T for _, _, vt in parts], axis=1)
    sigma = np.concatenate([s[:rank] for _, s, _ in parts])

    def white(x: Array) -> Array:
        values, vectors = np.linalg.eigh(x.T @ x)
        return np.asarray(x @ vectors @ np.diag(values**-0.5) @ vectors.T)

    return np.asarray(white(u) @ np.diag(sigma) @ white(v).T)


@pytest.mark.parametrize("rank", [None, 0.1])
def test_tsvm_equals_float64(rank: float | None) -> None:
    """Matrices and stacks of them; what is no matrix, or an embedding, is averaged."""
    shapes = {"w": (24, 40), "tall": (50, 9), "m.experts.w": (3, 8, 10), "embed.weight": (20, 8), "bias": (30,)}
    base, models = states(shapes, 3)
    result = fm.merge_state_dicts("tsvm", base, {f"m{k}": m for k, m in enumerate(models)}, rank=rank, scale=0.8)
    for name, shape in shapes.items():
        taus = [(m[name] - base[name]).numpy() for m in models]
        if name in ("embed.weight", "bias"):
            expected = np.mean(taus, axis=0)
        else:
            kept = max(1, int(min(shape[-2:]) * (rank or 1 / 3)))
            stacks = [tau.reshape(-1, *shape[-2:]) for tau in taus]
            expected = np.stack([whitened(list(own), kept) for own in zip(*stacks, strict=True)]).reshape(shape)
        actual = (result.state_dict[name] - base[name]).numpy()
        np.testing.assert_allclose(actual, 0.8 * expected, atol=1e-12, err_msg=name)


def test_tsvm_takes_a_share_of_singular_vectors() -> None:
    with pytest.raises(InputError, match="rank"):
        merged("tsvm", [[1.0]], rank=0)


def test_tsvm_takes_the_share_as_it_is_written() -> None:
    """0.29 of 100, which floating point makes 28.99…"""
    found = merged("tsvm", [[0.0] * 100] * 100, torch.arange(1.0, 101).diag().tolist(), rank=0.29)
    assert int((torch.tensor(found).diagonal() > 0.5).sum()) == 29
