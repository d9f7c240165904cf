"""RegMean against least squares on the inputs of layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classifiers import Classifier, features, members
from folders import read, write
from live import Net
from tensors import BF16
from torch import Tensor

import fastmerge as fm
from fastmerge.errors import InputError, MergeError
from fastmerge.informed import RegMeanRecord

BATCHES = {f"m{k}": [features(2 * k, 20), features(2 * k + 1, 20)] for k in range(3)}


def inputs(state: dict[str, Tensor], batches: list[Tensor]) -> dict[str, Tensor]:
    """What goes into each layer of a Classifier."""
    x = torch.cat(batches) + state["shift"]
    return {"up.weight": x, "down.weight": torch.tanh(x @ state["up.weight"].T + state["up.bias"])}


def test_gram_matrices() -> None:
    """XᵀX / N of every layer; tied output heads have none."""
    model = Classifier(1)
    found = fm.gram_matrices(model, BATCHES["m0"])
    for name, x in inputs(model.state_dict(), BATCHES["m0"]).items():
        assert torch.allclose(found[name], x.T @ x / len(x), rtol=1e-12)
    assert fm.gram_matrices(model, BATCHES["m0"], task_specific=["down.*"]).keys() == {"up.weight"}
    assert fm.gram_matrices(Net(0), [torch.arange(8).view(2, 4)]).keys() == {"up.weight", "down.weight"}
    assert not model.up._forward_pre_hooks


def test_least_squares() -> None:
    """With α = 1 and equal weights, Σ_k ‖X_k Wᵀ − X_k W_kᵀ‖² has its minimum there; the rest is averaged."""
    pool = members(3)
    result = fm.regmean(Classifier(9), pool, batches=BATCHES, alpha=1)
    seen = {name: inputs(state, BATCHES[name]) for name, state in pool.items()}
    for name, merged in result.state_dict.items():
        if name.endswith("weight"):
            x = torch.cat([seen[k][name] for k in pool])
            y = torch.cat([seen[k][name] @ pool[k][name].T for k in pool])
            expected = torch.from_numpy(np.linalg.lstsq(x.numpy(), y.numpy(), rcond=None)[0].T)
        else:
            expected = sum(pool[k][name] for k in pool) / 3
        assert torch.allclose(merged, expected, rtol=0, atol=1e-7), name


@pytest.mark.parametrize("alpha", [0, 0.9])
def test_the_formula(alpha: float) -> None:
    """Off-diagonal elements scaled, members weighted; given Gram matrices, by name or in order."""
    pool, weights = members(3), {"m0": 1, "m1": 2, "m2": 5}
    grams = {}
    for name, state in pool.items():
        model = Classifier()
        model.load_state_dict(state)
        grams[name] = fm.gram_matrices(model, BATCHES[name])
    scaled = {k: {n: alpha * g + (1 - alpha) * g.diagonal().diag() for n, g in own.items()} for k, own in grams.items()}
    for given in (grams, [*grams.values()]):
        result = fm.regmean(Classifier(9), pool, given, alpha=alpha, weights=weights)
        for name in ("up.weight", "down.weight"):
            left = sum(w * scaled[k][name] for k, w in weights.items())
            right = sum(w * pool[k][name] @ scaled[k][name] for k, w in weights.items())
            assert torch.allclose(result.state_dict[name], right @ torch.linalg.inv(left), atol=1e-7)
    (row,) = result.coefficients.values()
    assert row == {"m0": 1 / 8, "m1": 2 / 8, "m2": 5 / 8}


def test_inputs_that_no_model_has_give_the_mean() -> None:
    pool = members(2)
    grams = {name: {"up.weight": torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0]))} for name in pool}
    found = fm.regmean(Classifier(9), pool, grams).state_dict
    mean = {n: (t + pool["m1"][n]) / 2 for n, t in pool["m0"].items()}
    assert all(torch.allclose(t, mean[n], atol=1e-12) for n, t in found.items())
    nothing = {name: {"up.weight": torch.zeros(5, 5)} for name in pool}
    found = fm.regmean(Classifier(9), pool, nothing).state_dict
    assert torch.allclose(found["up.weight"], mean["up.weight"], atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_the_same_models_stay_as_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    """But for rounding; from folders, written as a folder with the record."""
    state = members(1, dtype)["m0"]
    pool = {name: write(tmp_path / name, state) for name in "ab"}
    model = Classifier(4, dtype)
    result = fm.regmean(model, pool, batches={name: [features(k, 20, dtype)] for k, name in enumerate("ab")})
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, state[name], rtol=1e-6, atol=1e-7)
    result.write(tmp_path / "out")
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in read(tmp_path / "out").items())
    assert RegMeanRecord.read(tmp_path / "out") == result.record
    again = fm.regmean(
        Classifier(4, dtype),
        pool,
        {n: write(tmp_path / f"{n}-grams", _grams(state, k, dtype)) for k, n in enumerate("ab")},
    )
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in again.state_dict.items())


def _grams(state: dict[str, Tensor], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    model = Classifier(0, dtype)
    model.load_state_dict(state)
    return fm.gram_matrices(model, [features(seed, 20, dtype)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pass these of each member of the pool, or batches"),
        ({"batches": BATCHES, "alpha": 2}, "alpha: is 2"),
        ({"batches": {"m0": [], "m1": [], "m2": []}}, "batches of m0: are empty"),
        ({"batches": {**BATCHES, "m": []}}, "'m' is no member of the pool"),
        (
            {"grams": [{"up.weigth": torch.eye(5)}] * 3},
            "'up.weigth' is no weight of a linear .*did you mean 'up.weight'",
        ),
        ({"grams": [{"up.weight": torch.eye(4)}] * 3}, r"Gram matrices of m0: tensor 'up.weight' is F32 \[4, 4\]"),
        ({"grams": [{"up.weight": torch.eye(5)}, {}, {}]}, "Gram matrices of m1: tensor 'up.weight' is missing"),
        ({"batches": BATCHES, "task_specific": ["up.*", "down.*"]}, "go through no linear layer"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else ",".join(value),
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    """The model is what it was."""
    model = Classifier(0)
    with pytest.raises(InputError, match=message):
        fm.regmean(model, members(3), **options)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in Classifier(0).state_dict().items())


def test_what_is_not_finite_is_named() -> None:
    """And the model, which was each member in turn, has its own weights again."""
    model = Classifier(0)
    bad = members(3)
    bad["m1"]["down.weight"][0, 0] = torch.nan
    with pytest.raises(MergeError, match=r"'down\.weight'.*not finite"):
        fm.regmean(model, bad, [{"up.weight": torch.eye(5)}] * 3)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in Classifier(0).state_dict().items())
    with pytest.raises(MergeError, match=r"inputs of 'up\.weight' are not finite"):
        fm.regmean(model, members(3), batches={**BATCHES, "m2": [torch.full((3, 5), torch.inf)]})
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in Classifier(0).state_dict().items())
