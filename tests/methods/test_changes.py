"""SCE, Arcee Fusion, NearSwap, passthrough: by hand, and in float64 by sorting."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tensors import assert_same_bits, make

import fastmerge as fm
from fastmerge import ops
from fastmerge.methods import _select
from fastmerge.methods.arcee_fusion import least_of

Array = NDArray[np.float64]


def merged(method: str, base: list[float], *models: list[float], **params: Any) -> Any:
    named = {f"m{k}": {"w": torch.tensor(values)} for k, values in enumerate(models)}
    return fm.merge_state_dicts(method, {"w": torch.tensor(base)}, named, **params).state_dict["w"].tolist()


@pytest.mark.parametrize(
    ("params", "models", "expected"),
    [
        # Energies 10 and 2 weigh 5/6 and 1/6.
        ({}, ([3.0, 1], [1.0, 1]), [5 / 6 * 3 + 1 / 6, 1.0]),
        # Signs of sums +, +, +, zero: +; who disagrees is erased.
        ({}, ([4.0, 1, -1, 2], [-2.0, 1, 3, -2]), [4.0, 1, 3, 2]),
        # Variances 9, 0, 4, 4: half of the three that vary, of equals the first.
        ({"select_topk": 0.5}, ([4.0, 1, -1, 2], [-2.0, 1, 3, -2]), [4.0, 0, 0, 0]),
        ({"select_topk": 0.7}, ([4.0, 1, -1, 2], [-2.0, 1, 3, -2]), [4.0, 0, 3, 0]),
        ({"select_topk": 0}, ([3.0, 1], [1.0, 1]), [0.0, 0]),
        # The same task vectors a thousandth as large: mergekit would weigh these alike.
        ({}, ([3e-4, 1e-4], [1e-4, 1e-4]), [(5 / 6 * 3 + 1 / 6) * 1e-4, 1e-4]),
    ],
)
def test_sce_by_hand(params: dict[str, Any], models: tuple[list[float], ...], expected: list[float]) -> None:
    assert merged("sce", [0.0] * len(expected), *models, **params) == pytest.approx(expected, rel=1e-6)


def test_nearswap_by_hand() -> None:
    assert merged("nearswap", [1.0, 1, 1, 1], [1.25, 3, -1, 0.5], t=0.5) == [1.25, 1.5, 0.5, 0.5]


def test_nearswap_takes_what_is_near_to_the_bit() -> None:
    """Where the difference to base cannot be represented, too."""
    base, model = {"w": torch.tensor([1.0])}, {"w": torch.tensor([1e-8])}
    assert_same_bits(fm.merge_state_dicts("nearswap", base, {"m": model}, t=1).state_dict["w"], model["w"], "model's")


def test_passthrough_by_hand() -> None:
    assert merged("passthrough", [0.0, 0], [1.5, -2]) == [1.5, -2]
    assert merged("passthrough", [0.0, 0], [1.5, -2], scale=-2) == [-3, 4]


def test_arcee_fusion_by_hand() -> None:
    """In one row importance goes as |τ|: quartiles 1, 1 and 2 hundredths, so from 1 + 1.5 (2 − 1) on it is taken."""
    base = [0.5, 0.25, -0.5, 0, 0, 1, 2, 3]
    model = [x + step / 100 for x, step in zip(base, [0, 1, -1, 1, 2, -2, 2, 100], strict=True)]
    assert merged("arcee_fusion", base, model) == [*base[:7], 4.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 1e-9, 1e-46, 7.723888417743296e-09])
def test_what_reaches_a_threshold(threshold: float, dtype: torch.dtype) -> None:
    """Exactly what is not below it in float64."""
    least = torch.tensor(least_of(threshold, dtype), dtype=dtype)
    assert float(least) >= threshold
    assert float(least.nextafter(torch.tensor(-1, dtype=dtype))) < threshold


def sce(base: Array, models: list[Array], select_topk: str) -> Array:
    taus = np.stack([m - base for m in models])
    variance = taus.var(axis=0).ravel()
    kept = np.zeros(variance.size, dtype=bool)
    count = int(Fraction(select_topk) * int((variance > 0).sum()))
    kept[np.argsort(-variance, kind="stable")[:count]] = True
    taus = taus if select_topk == "1" else taus * kept.reshape(base.shape)
    energy = (taus**2).reshape(len(models), -1).sum(axis=1)
    shares = energy / energy.sum() if energy.any() else np.full(len(models), 1 / len(models))
    weights = shares.reshape(-1, *[1] * base.ndim)
    agree = np.sign(taus) == np.where(taus.sum(axis=0) >= 0, 1, -1)
    total = (weights * agree).sum(axis=0)
    return np.asarray(base + (weights * agree * taus).sum(axis=0) / np.where(total > 0, total, 1))


def arcee_fusion(base: Array, model: Array) -> Array:
    def softmax(x: Array) -> Array:
        powers = np.exp(x - x.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True) + 1e-8)

    p, q = softmax(model), softmax(base)
    importance = np.abs(model - base) * (p * np.log(p / q)).sum(axis=-1, keepdims=True)
    inorder = np.sort(importance.ravel())
    first, median, third = (inorder[(inorder.size - 1) * j // 4] for j in (1, 2, 3))
    return np.where(importance >= median + 1.5 * (third - first), model, base)


SHAPES = {"w": (24, 40), "stack": (3, 4, 50), "vector": (101,), "one": (1,)}


@pytest.mark.parametrize("slab", [64, _select.SLAB], ids=["pieces", "whole"])
@pytest.mark.parametrize("select_topk", ["1", "0.5", "0.07"])
def test_equals_float64(select_topk: str, slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By sorting whole tensors, however small the pieces in which they are looked at."""
    monkeypatch.setattr(_select, "SLAB", slab)
    generator = torch.Generator().manual_seed(3)
    tensors = [
        {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}
        for _ in range(4)
    ]
    base, models = (
        tensors[0],
        [{n: tensors[0][n] + 0.05 * (k + 1) * t for n, t in m.items()} for k, m in enumerate(tensors[1:])],
    )
    named = {f"m{k}": m for k, m in enumerate(models)}
    selected = fm.merge_state_dicts("sce", base, named, select_topk=float(select_topk)).state_dict
    fused = fm.merge_state_dicts("arcee_fusion", base, {"m0": models[0]}).state_dict
    for name in SHAPES:
        own, others = base[name].numpy(), [m[name].numpy() for m in models]
        np.testing.assert_allclose(selected[name].numpy(), sce(own, others, select_topk), atol=1e-7, err_msg=name)
        np.testing.assert_allclose(fused[name].numpy(), arcee_fusion(own, others[0]), atol=1e-15, err_msg=name)


@given(st.integers(1, 700), st.sampled_from([torch.float32, torch.float64]), st.data())
def test_cuts_are_those_of_sorting(n: int, dtype: torch.dtype, data: st.DataObject) -> None:
    x = make(n, dtype, n, special=False).abs()
    ranks = data.draw(st.lists(st.integers(0, n), min_size=1, max_size=4))
    order = x.argsort(descending=True, stable=True)
    for rank, cut in zip(ranks, _select.cuts(x, ranks), strict=True):
        expected = torch.zeros(n, dtype=torch.uint8).index_fill_(0, order[:rank], 1)
        assert_same_bits(_select.above(x, cut, 0).to(torch.uint8), expected, f"rank {rank}")


@pytest.mark.parametrize("n", [0, 1, 64, 701])
def test_masks_are_packed_in_pieces(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_select, "SLAB", 64)
    x = make(n, torch.float32, 5, special=False)
    packed = _select.packed(x, lambda own: x[own] > 0)
    assert_same_bits(packed, ops.pack_bits(x > 0), "packed")
    assert_same_bits(_select.part(packed, 8, n - 8), packed[1:], "part")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_chosen_has_its_bits(dtype: torch.dtype) -> None:
    """NaN, infinity and signed zeros among them."""
    x, y = (make(10_007, dtype, seed) for seed in (1, 2))
    mask = torch.rand(10_007, generator=torch.Generator().manual_seed(3)) < 0.5
    assert_same_bits(_select.chosen(mask, x, y), torch.where(mask, x, y), "chosen")
