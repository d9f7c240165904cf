"""Fisher information against its closed form for a linear classifier, and the means that it weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from classifiers import CLASSES, Classifier, features, members
from folders import read, write
from live import Net
from safetensors.torch import save_file
from tensors import BF16
from torch import Tensor, nn

import fastmerge as fm
from fastmerge.errors import InputError, MergeError
from fastmerge.informed import FisherRecord

X = features(0, 8)


def by_hand(weight: Tensor, x: Tensor, labels: Tensor | None = None) -> Tensor:
    """Of softmax(W x): the mean over x of Σ_c p_c (1[i = c] − p_i)² x_j², or of the given label's term."""
    p = (x @ weight.T).softmax(1)
    share = p if labels is None else nn.functional.one_hot(labels, CLASSES).double()
    residual = torch.eye(CLASSES, dtype=torch.float64) - p[:, None]  # [n, c, i]
    return torch.einsum("nc,nci,nj->ij", share, residual.square(), x.square()) / len(x)


def linear() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(5, CLASSES, bias=False).double()


def test_information_of_a_linear_classifier() -> None:
    """The expectation over the model's own labels, and with given ones; frozen parameters stay frozen."""
    model, labels = linear(), torch.arange(8) % CLASSES
    model.weight.requires_grad_(False)
    found = fm.fisher_information(model, [X[:5], X[5:]])
    assert torch.allclose(found["weight"], by_hand(model.weight, X), rtol=1e-12)
    batches = [(X[:5], labels[:5]), (X[5:], labels[5:])]
    found = fm.fisher_information(model, batches, labels="empirical")
    assert torch.allclose(found["weight"], by_hand(model.weight, X, labels), rtol=1e-12)
    assert not model.weight.requires_grad
    assert model.weight.grad is None


def test_sampled_labels() -> None:
    """On average the expectation; the same for the same seed."""
    model = linear()
    once, again, other = (
        fm.fisher_information(model, [X.repeat(300, 1)], labels="sample", seed=seed)["weight"] for seed in (0, 0, 1)
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert torch.allclose(once, by_hand(model.weight, X), rtol=0.1)


def test_sequences() -> None:
    """A label is drawn for each position, and tied parameters are one."""
    ids = torch.arange(8).view(2, 4)
    found = fm.fisher_information(Net(0, torch.float32), [ids], labels="sample")
    assert "out.weight" not in found
    assert all((own >= 0).all() and own.any() for own in found.values())
    with pytest.raises(InputError, match=r"logits \[n, C\], the model's are \[1, 4, 50\]; use 'sample'"):
        fm.fisher_information(Net(0, torch.float32), [ids])


def informations(pool: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Of every member, seen on its own batch."""
    found = {}
    for k, (name, state) in enumerate(pool.items()):
        model = Classifier()
        model.load_state_dict(state)
        found[name] = fm.fisher_information(model, [features(k)])
    return found


@pytest.mark.parametrize(
    "options", [{}, {"floor": 1e-2}, {"normalize": True}, {"weights": {"m0": 3, "m1": 0, "m2": 1}}], ids=str
)
def test_the_mean_by_its_formula(options: dict[str, Any], tmp_path: Path) -> None:
    """Whether information is given, by name or in order, in memory or on disk, or found from batches."""
    pool = members(3)
    fishers = informations(pool)
    shares = [options.get("weights", {}).get(name, 1) for name in pool]
    scales = [
        w / torch.cat([t.flatten() for t in own.values()]).norm() if options.get("normalize") else w
        for w, own in zip(shares, fishers.values(), strict=True)
    ]
    files = []
    for name, own in fishers.items():
        save_file(own, tmp_path / f"{name}.safetensors")
        files.append(tmp_path / f"{name}.safetensors")
    given: list[dict[str, Any]] = [{"fishers": fishers}, {"fishers": [*fishers.values()]}, {"fishers": files}]
    given.append({"batches": {name: [features(k)] for k, name in enumerate(pool)}})
    results = [fm.fisher(Classifier(9), pool, **own, **options) for own in given]
    for name, merged in results[0].state_dict.items():
        f = (
            [
                scale * own[name].clamp(min=options.get("floor", 1e-6))
                for scale, own in zip(scales, fishers.values(), strict=True)
            ]
            if name != "shift"
            else shares
        )
        expected = sum(own * pool[k][name] for own, k in zip(f, pool, strict=True)) / sum(f)
        assert torch.allclose(merged, expected, rtol=1e-12, atol=1e-12), name
    for result in results[1:]:
        assert all(torch.allclose(t, results[0].state_dict[n], rtol=1e-12) for n, t in result.state_dict.items())
    (row,) = results[0].coefficients.values()
    assert [*row.values()] == pytest.approx([w / sum(shares) for w in shares])


def test_where_no_model_cares_there_is_the_mean() -> None:
    """And where one alone does, its weight; a Fisher of zeros and no floor, or a member that is not finite, is an error
    that leaves the model alone."""
    pool = {"a": {"weight": torch.ones(1, 2)}, "b": {"weight": torch.full((1, 2), 3.0)}}
    fishers = {"a": {"weight": torch.tensor([[0.0, 0.0]])}, "b": {"weight": torch.tensor([[0.0, 1e9]])}}
    model = nn.Linear(2, 1, bias=False)
    assert fm.fisher(model, pool, fishers).state_dict["weight"].tolist() == [[2.0, 3.0]]
    wild = {"a": {"weight": torch.ones(1, 2)}, "b": {"weight": torch.tensor([[torch.nan, 1]])}}
    for members_, floor, said in ((pool, 0, "0 in some element; pass a floor"), (wild, 1e-6, "not finite")):
        with pytest.raises(MergeError, match=rf"'weight'.*{said}"):
            fm.fisher(model, members_, fishers, floor=floor)
        assert model.weight.tolist() == [[2.0, 3.0]]


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_the_same_models_are_their_mean(dtype: torch.dtype, tmp_path: Path) -> None:
    """To the bit, from folders as well, written as a folder with the record."""
    state = members(1, dtype)["m0"]
    pool = {name: write(tmp_path / name, state) for name in "abc"}
    model = Classifier(4, dtype)
    result = fm.fisher(model, pool, batches={name: [features(k, dtype=dtype)] for k, name in enumerate("abc")})
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert result.write(tmp_path / "out").models == [*"abc"]
    assert all(torch.equal(t, state[n]) for n, t in read(tmp_path / "out").items())
    assert FisherRecord.read(tmp_path / "out") == result.record
    assert fm.verify(tmp_path / "out").problems == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pass these of each member of the pool, or batches"),
        ({"fishers": [{}, {}], "batches": {}}, "not both"),
        ({"fishers": [{}]}, "there are 1, for 2 members"),
        ({"fishers": {"m0": {}, "m2": {}}}, "has none of m1; did you mean .*\nfishers: 'm2' is no member"),
        ({"fishers": [{}, {}]}, "Fisher information of m0: tensor 'up.weight' is missing"),
        ({"batches": {"m0": [X], "m1": []}}, "batches of m1: are empty"),
        ({"batches": {"m0": [X]}}, "batches: has none of m1"),
        ({"batches": {"m0": [X], "m1": [X]}, "floor": -1}, "floor: is -1"),
        ({"batches": {"m0": [X], "m1": [X]}, "labels": "true"}, "labels: is 'true'"),
        ({"batches": {"m0": [X], "m1": [X]}, "weights": {"m0": 1}}, "weights: has none of m1"),
        ({"batches": {"m0": [X], "m1": [X]}, "weights": {"m0": 0, "m1": 0}}, "weights: must be finite"),
        ({"batches": {"m0": [(X, X[:2])], "m1": [X]}, "labels": "empirical"}, "of as many samples"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else ",".join(value),
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    """The model is what it was."""
    model = Classifier(0)
    with pytest.raises(InputError, match=message):
        fm.fisher(model, members(2), **options)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in Classifier(0).state_dict().items())


def test_bad_information_is_named() -> None:
    pool = members(2)
    fishers = informations(pool)
    fishers["m1"]["down.bias"][0] = -1
    with pytest.raises(MergeError, match=r"of m1: tensor 'down\.bias' is negative or not finite"):
        fm.fisher(Classifier(0), pool, fishers)
    model = Classifier(0)
    model.down.weight.data.fill_(torch.nan)
    with pytest.raises(MergeError, match="not finite; look at the model"):
        fm.fisher_information(model, [X])


def merged(method: str, model: nn.Module, pool: dict[str, dict[str, Tensor]], init: dict[str, Tensor]) -> Any:
    labelled = [(X, torch.arange(8) % CLASSES)]
    if method in ("fisher", "regmean"):
        return getattr(fm, method)(model, {"a": init, **pool}, batches=dict.fromkeys(["a", *pool], labelled))
    if method == "ada_merging":
        return fm.ada_merging(model, pool, labelled, steps=3, init=init)
    options: dict[str, Any] = {"steps": 3, "step": 0.5, "tolerance": -torch.inf, "initial_vertex": False}
    return fm.frank_wolfe(model, pool, fm.fw.cross_entropy, labelled, init=init, **options)


@pytest.mark.parametrize("method", ["fisher", "regmean", "ada_merging", "frank_wolfe"])
def test_the_models_own_state_dict_may_be_a_candidate(method: str) -> None:
    """It is what it was at first, whatever the model becomes."""
    one, other = Classifier(0), Classifier(0)
    expected = merged(method, one, members(2), {n: t.clone() for n, t in one.state_dict().items()}).state_dict
    found = merged(method, other, members(2), other.state_dict()).state_dict
    assert not torch.equal(found["up.weight"], Classifier(0).up.weight)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("method", ["fisher", "ada_merging", "frank_wolfe"])
def test_an_interruption_leaves_the_last_whole_model(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the model is between two states."""
    model, rewrite, calls = Classifier(0), fm.fw.candidates.rewrite, 0
    before = {n: t.clone() for n, t in model.state_dict().items()}

    def interrupted(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        rewrite(*arguments)
        if calls == (2 if method == "frank_wolfe" else 1):  # whose first one writes what is there
            raise KeyboardInterrupt

    for name in ("fw.iterate", "informed.ada_merging", "informed.statistics"):
        monkeypatch.setattr(f"fastmerge.{name}.rewrite", interrupted)
    with pytest.raises(KeyboardInterrupt):
        merged(method, model, members(2), before)
    for name, tensor in before.items():
        assert torch.equal(model.state_dict()[name], tensor), name
