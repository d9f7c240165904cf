"""AdaMerging against autograd through the merged model, and against merges by the coefficients that it finds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from classifiers import Classifier, features, members
from folders import read, write
from tensors import BF16
from torch import Tensor, nn

import fastmerge as fm
from fastmerge.errors import InputError, MergeError
from fastmerge.fw.candidates import Candidates
from fastmerge.informed import AdaMergingRecord
from fastmerge.informed.task_vectors import ElectedTaskVectors

TASKS = {"a": [features(0), features(1), features(2)], "b": [features(3), features(4)]}
DENSITY = 0.4


def elected(vectors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """TIES's task vectors by sorting: the largest of each, and of these what agrees with the sign of their sum."""
    flat = torch.stack([torch.cat([t.flatten() for t in own.values()]) for own in vectors.values()])
    kept = int(DENSITY * flat.shape[1])
    least = flat.abs().sort(1, descending=True).values[:, kept - 1 : kept]
    trimmed = flat.where(flat.abs() >= least, 0.0)
    own = trimmed.where(trimmed.sign() == torch.where(trimmed.sum(0) < 0, -1.0, 1.0), 0.0)
    sizes = [t.numel() for t in next(iter(vectors.values())).values()]
    return {
        name: {n: part.view_as(t) for (n, t), part in zip(vectors[name].items(), row.split(sizes), strict=True)}
        for name, row in zip(vectors, own, strict=True)
    }


def entropy(logits: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits).entropy().mean()


def by_autograd(pool: Mapping[str, Mapping[str, Tensor]], steps: int, options: Mapping[str, Any]) -> Tensor:
    """The coefficients that Adam finds where autograd goes through the merged model."""
    model = Classifier(0)
    base = {n: t.clone() for n, t in model.state_dict().items()}
    vectors = {name: {n: t - base[n] for n, t in own.items()} for name, own in pool.items()}
    vectors = elected(vectors) if options.get("plus_plus") else vectors
    rows = len(base) if options.get("coefficients", "layer") == "layer" else 1
    raw = torch.full((rows, len(pool)), options["initial"], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=options["rate"])
    for number in range(steps):
        lam = raw.clamp(*options["bounds"]) if options["bounds"] else raw
        state = {
            n: t + sum(lam[i % rows, k] * own[n] for k, own in enumerate(vectors.values()))
            for i, (n, t) in enumerate(base.items())
        }
        state["shift"] = state["shift"].detach()  # buffers have no gradient
        batches = [own[number % len(own)] for own in TASKS.values()]
        losses = [entropy(torch.func.functional_call(model, state, (batch,))) for batch in batches]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    return raw.detach().clamp(*options["bounds"]) if options["bounds"] else raw.detach()


@pytest.mark.parametrize(
    "options",
    [
        {"coefficients": "task"},
        {"coefficients": "layer"},
        {"coefficients": "layer", "plus_plus": True, "density": DENSITY},
        {"coefficients": "task", "plus_plus": True, "density": DENSITY},
        {"coefficients": "layer", "initial": 0.97, "rate": 0.02},
        {"coefficients": "layer", "bounds": None, "initial": -0.2},
    ],
    ids=str,
)
def test_learns_as_autograd_does(options: dict[str, Any]) -> None:
    """The same coefficients after some steps, and so the same gradients: through bounds, layers and elections."""
    options = {"initial": 0.3, "rate": 0.01, "bounds": (0.0, 1.0)} | options
    pool = members(3)
    expected = by_autograd(pool, 12, options)
    result = fm.ada_merging(Classifier(0), pool, TASKS, steps=12, **options)
    found = torch.tensor([[*row.values()] for row in result.coefficients.values()], dtype=torch.float64)
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)
    assert not torch.allclose(found, torch.full_like(found, options["initial"]), atol=1e-3)
    if options["bounds"] and options["initial"] > 0.9:
        assert (found == 1).any()


def test_descends() -> None:
    """Of a convex loss to the least distance that the task vectors can reach."""
    pool = members(2)
    target = {
        n: t + 0.7 * (pool["m0"][n] - t) + 0.1 * (pool["m1"][n] - t) for n, t in Classifier(0).state_dict().items()
    }

    def distance(model: nn.Module, _: object) -> Tensor:
        return torch.stack([(p - target[n]).square().sum() for n, p in model.named_parameters()]).sum()

    result = fm.ada_merging(Classifier(0), pool, [None], distance, coefficients="task", steps=600, rate=0.01)
    (row,) = result.coefficients.values()
    assert row == pytest.approx({"m0": 0.7, "m1": 0.1}, abs=1e-3)
    assert result.loss is not None
    assert result.loss < 1e-5 * result.steps[0].loss


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_the_model_is_the_merge_by_its_coefficients(dtype: torch.dtype, tmp_path: Path) -> None:
    """To the bit: of task arithmetic, or for AdaMerging++ of TIES's sum; from files as from memory."""
    base, pool = Classifier(0, dtype).state_dict(), members(3, dtype)
    files = {name: write(tmp_path / name, own) for name, own in pool.items()}
    ties = {"density": DENSITY, "scope": "global", "vote": "unweighted", "merge": "sum"}
    for plus_plus, method, params in ((False, "task_arithmetic", {}), (True, "ties", ties)):
        options: dict[str, Any] = {"coefficients": "task", "plus_plus": plus_plus, "density": DENSITY, "steps": 3}
        batches = [features(0, dtype=dtype)]
        results = [fm.ada_merging(Classifier(0, dtype), own, batches, rate=0.05, **options) for own in (pool, files)]
        (row,) = results[0].coefficients.values()
        expected = fm.merge_state_dicts(method, base, pool, weights=[*row.values()], **params).state_dict
        for result in results:
            assert all(torch.equal(t, expected[n]) for n, t in result.state_dict.items())


def test_a_hundred_members() -> None:
    """More than an op takes at once; AdaMerging++ takes no more than 64."""
    pool = members(70)
    result = fm.ada_merging(Classifier(0), pool, [features(0)], coefficients="task", steps=1, initial=0.01)
    (row,) = result.coefficients.values()
    base = Classifier(0).state_dict()
    for name, found in result.state_dict.items():
        expected = base[name] + sum(w * (pool[k][name] - base[name]) for k, w in row.items())
        assert torch.allclose(found, expected, atol=1e-6)  # λ are rounded to the working type
    with pytest.raises(InputError, match="plus_plus: takes 64 members of a pool at most, there are 70"):
        fm.ada_merging(Classifier(0), pool, [features(0)], plus_plus=True)


def test_written_and_told(tmp_path: Path) -> None:
    """An ordinary folder with the record, whose numbers are those of the result."""
    pool = {name: write(tmp_path / name, own) for name, own in members(2, BF16).items()}
    base = write(tmp_path / "base", Classifier(0, BF16).state_dict(), {"model_type": "net"})
    (base / "tokenizer.json").write_text("{}")
    model = Classifier(5, BF16)
    tasks = {"a": [features(0, dtype=BF16)], "b": [features(1, dtype=BF16)]}
    seen: list[int] = []
    result = fm.ada_merging(
        model, pool, tasks, init=base, layers=["up.*", "down.*"], callback=lambda step: bool(seen.append(step.number))
    )
    assert seen == list(range(500))
    assert [*result.coefficients] == ["shift", "up.*", "down.*"]
    report = result.write(tmp_path / "out")
    assert report.method == "ada_merging"
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in read(tmp_path / "out").items())
    assert (tmp_path / "out/tokenizer.json").is_file()
    record = AdaMergingRecord.read(tmp_path / "out")
    assert record == result.record
    assert record.coefficients == [[*row.values()] for row in result.coefficients.values()]
    assert fm.verify(tmp_path / "out").problems == []
    stopped = fm.ada_merging(Classifier(5, BF16), pool, tasks, init=base, callback=lambda step: step.number == 1)
    assert (len(stopped.steps), stopped.record.ended) == (2, "callback")


def test_a_loss_that_is_no_number_is_named() -> None:
    """The model is at the last whole step."""
    model, calls = Classifier(0), [0]

    def loss(m: nn.Module, _: object) -> Tensor:
        calls[0] += 1
        return fm.fw.entropy(m, features(0)) * (torch.nan if calls[0] == 3 else 1)

    with pytest.raises(MergeError, match=r"not finite at step 2: all \(nan\)"):
        fm.ada_merging(model, members(2), [None], loss, rate=0.01)
    expected = fm.ada_merging(Classifier(0), members(2), [features(0)], steps=2, rate=0.01).state_dict
    assert all(torch.equal(t, expected[n]) for n, t in model.state_dict().items())
    bad = members(2)
    bad["m1"]["up.weight"][0, 0] = torch.nan
    untouched = Classifier(0)
    with pytest.raises(MergeError, match=r"'up\.weight'"):
        fm.ada_merging(untouched, bad, [features(0)])
    assert all(torch.equal(t, Classifier(0).state_dict()[n]) for n, t in untouched.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": []}, "batches of all: are empty"),
        ({"batches": (b for b in ())}, "gone through once"),
        ({"coefficients": "layers"}, "coefficients: is 'layers'"),
        ({"steps": 0, "rate": 0.0}, "steps: is 0.*\nrate: is 0.0"),
        ({"batches_per_step": 0}, "batches_per_step: is 0"),
        ({"initial": 2.0}, "initial: is 2.0, which is not within the bounds"),
        ({"bounds": (1.0, 0.0)}, "bounds: are"),
        ({"density": 0.0}, "density: is 0.0"),
        ({"layers": "blocks"}, "layers: is 'blocks'"),
        ({"layers": ["head.*"]}, r"layers: 'head.\*' matches no tensor"),
        ({"pool": {"m": {"up.weight": torch.zeros(2)}}}, "m: tensor 'up.weight' is F32"),
        ({"pool": []}, "pool: is empty"),
        ({"init": "/nowhere"}, "nowhere does not exist"),
        ({"task_weights": {"b": 1}}, "no task 'b'"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else ",".join(value),
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"pool": members(2), "batches": [features(0)]} | options
    with pytest.raises(InputError, match=message):
        fm.ada_merging(Classifier(0), call.pop("pool"), call.pop("batches"), **call)


def test_elected_task_vectors_are_float64_where_one_model_is() -> None:
    """Each by itself too: of the elements that all models together keep, and with the bits of inputs widened before."""
    order = [torch.randperm(400, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    pool = {f"m{k}": {"weight": (own * 2.0**-30).view(20, 20)} for k, own in enumerate(order)}
    found = []
    for dtypes in ((torch.float32, torch.float64, torch.float32), (torch.float64,) * 3):
        model = nn.Linear(20, 20, bias=False).to(torch.float64 if dtypes[0] == torch.float64 else torch.float32)
        nn.init.ones_(model.weight)
        own = {name: {"weight": t["weight"].to(dtype)} for (name, t), dtype in zip(pool.items(), dtypes, strict=True)}
        vectors = ElectedTaskVectors(Candidates.of(model, own, "base", (), False), 0.2)
        found.append(vectors.dots({"weight": torch.arange(400.0)}, "now"))
    assert torch.equal(*found)
