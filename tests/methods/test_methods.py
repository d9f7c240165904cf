"""Every method: hand-worked examples, and what holds of all of them, streamed from disk and in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from folders import family, near, read, state, write
from hypothesis import given
from hypothesis import strategies as st
from tensors import assert_same_bits, grid

import fastmerge as fm
from fastmerge import dispatch, methods, ops
from fastmerge.errors import InputError, MergeError
from fastmerge.methods._declaration import Block, Method, Pass, Statistics
from fastmerge.methods._modulators import rescalers
from fastmerge.recipe import memory

BASE = {"w": torch.tensor([1.0, 1.0, 1.0, 1.0])}
ONE = {"w": torch.tensor([3.0, 0.0, 2.0, 1.0])}  # τ = 2, −1, 1, 0
TWO = {"w": torch.tensor([2.0, -2.0, -1.0, 1.0])}  # τ = 1, −3, −2, 0


def merged(method: str, models: Sequence[dict[str, torch.Tensor]] = (ONE, TWO), **params: object) -> list[float]:
    named = {f"m{k}": m for k, m in enumerate(models)}
    result: list[float] = fm.merge_state_dicts(method, BASE, named, **params).state_dict["w"].tolist()
    return result


def count(method: str) -> int:
    """How many models to test a method with."""
    return min(3, methods.get(method).counts[1])


@pytest.mark.parametrize(
    ("method", "params", "expected"),
    [
        ("linear", {}, [2.5, -1.0, 0.5, 1.0]),
        ("linear", {"weights": [3, 1]}, [2.75, -0.5, 1.25, 1.0]),
        ("linear", {"weights": {"m1": 1, "m0": 3}}, [2.75, -0.5, 1.25, 1.0]),
        ("linear", {"weights": "1,1", "normalize": False}, [5.0, -2.0, 1.0, 2.0]),
        ("task_arithmetic", {}, [4.0, -3.0, 0.0, 1.0]),
        ("task_arithmetic", {"scale": 0.5}, [2.5, -1.0, 0.5, 1.0]),
        ("task_arithmetic", {"weights": "m0=2,m1=0"}, [5.0, -1.0, 3.0, 1.0]),
        ("task_arithmetic", {"normalize": True}, [2.5, -1.0, 0.5, 1.0]),
        ("magmax", {}, [3.0, -2.0, -1.0, 1.0]),
        ("magmax", {"scale": 2}, [5.0, -5.0, -3.0, 1.0]),
    ],
)
def test_by_hand(method: str, params: dict[str, object], expected: list[float]) -> None:
    assert merged(method, **params) == expected


def test_emr_by_hand() -> None:
    """τ_uni = 2, −3, −2, 0; model 0 keeps the first two, so λ_0 = 4/5; model 1 the first three, λ_1 = 6/7."""
    result = fm.merge_state_dicts("emr", BASE, {"one": ONE, "two": TWO})
    assert result.state_dict["w"].tolist() == [3.0, -2.0, -1.0, 1.0]
    scales = [float(torch.tensor(x, dtype=torch.float32)) for x in (4 / 5, 6 / 7)]
    assert list(result.stats["rescalers"].values()) == scales
    first, second = (
        1 + torch.tensor(s) * torch.tensor(t) for s, t in zip(scales, ([2.0, -3, 0, 0], [2.0, -3, -2, 0]), strict=True)
    )
    assert_same_bits(result.task("one")["w"], first, "first task")
    assert_same_bits(result.task("two")["w"], second, "second task")


def test_emr_mean_of_means_by_hand() -> None:
    """Per-tensor means are summed: a small tensor weighs as much as a large one."""
    base = {"small": torch.zeros(1), "large": torch.zeros(4)}
    one = {"small": torch.tensor([4.0]), "large": torch.tensor([1.0, 1, 1, 1])}
    two = {"small": torch.tensor([8.0]), "large": torch.tensor([1.0, 1, 1, 1])}
    by_sum = fm.merge_state_dicts("emr", base, {"one": one, "two": two}).stats["rescalers"]
    by_mean = fm.merge_state_dicts("emr", base, {"one": one, "two": two}, rescale="mean_of_means").stats["rescalers"]
    assert by_sum["one"] == pytest.approx(8 / 12)
    assert by_mean["one"] == pytest.approx(5 / 9)
    assert by_sum["two"] == by_mean["two"] == 1


def test_a_task_equal_to_base_has_rescaler_zero() -> None:
    result = fm.merge_state_dicts("emr", BASE, {"one": ONE, "same": BASE})
    assert result.stats["rescalers"]["same"] == 0
    assert_same_bits(result.task("same")["w"], BASE["w"], "base again")


def test_modulators_by_hand() -> None:
    """Task arithmetic gives τ_m = 3, −4, −1, 0; model 0 agrees on the first two: λ_0 = 4/7; model 1 on three: 6/8."""
    result = fm.merge_state_dicts("task_arithmetic", BASE, {"one": ONE, "two": TWO}, modulators=True)
    assert list(result.stats["rescalers"].values()) == [pytest.approx(4 / 7), 0.75]
    assert result.task("two")["w"].tolist() == [1 + 0.75 * 3, 1 - 0.75 * 4, 1 - 0.75, 1.0]


def test_rescalers_leave_non_finite_tensors_out() -> None:
    found = {"a": torch.tensor([[2.0, 4.0], [1.0, 1.0]]), "b": torch.tensor([[float("nan"), 1.0], [1.0, 1.0]])}
    sums = Statistics(2, {"a": 1, "b": 1}, found)
    assert rescalers(sums, "global") == [2.0, 4.0]


@given(st.integers(1, 6), st.integers(0, 200), st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
def test_identical_models_return_themselves(count: int, n: int, dtype: torch.dtype) -> None:
    """On an exactly summable grid, merging copies of one model gives that model to the bit."""
    base, model = {"w": grid(n, dtype, 1)}, {"w": grid(n, dtype, 2)}
    copies = {f"m{k}": model for k in range(count)}
    for method, params in (("linear", {}), ("task_arithmetic", {"normalize": True}), ("magmax", {})):
        assert_same_bits(fm.merge_state_dicts(method, base, copies, **params).state_dict["w"], model["w"], method)
    emr = fm.merge_state_dicts("emr", base, copies)
    for name in copies:
        assert_same_bits(emr.task(name)["w"], model["w"], "emr")


@given(st.permutations(range(5)))
def test_permuting_models_permutes_tasks(order: list[int]) -> None:
    """On an exactly summable grid the order of models changes no bit but the order of tasks."""
    base = {"w": grid(300, torch.bfloat16, 9)}
    models = {f"m{k}": {"w": grid(300, torch.bfloat16, k)} for k in range(5)}
    shuffled = {f"m{k}": models[f"m{k}"] for k in order}
    for method in ("linear", "task_arithmetic", "emr"):
        one, two = fm.merge_state_dicts(method, base, models), fm.merge_state_dicts(method, base, shuffled)
        assert_same_bits(one.state_dict["w"], two.state_dict["w"], method)
        if method == "emr":
            for name in models:
                assert_same_bits(one.task(name)["w"], two.task(name)["w"], name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", [m for m in methods.names() if m not in ("emr", "tall_masks")])
def test_streamed_equals_in_memory(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base, models = family(tmp_path, count(method), dtype)
    fm.merge(method, base, models, tmp_path / "out")
    expected = fm.merge_state_dicts(method, read(base), {name: read(folder) for name, folder in models.items()})
    actual = read(tmp_path / "out")
    assert list(actual) == list(expected.state_dict)
    for name, tensor in actual.items():
        assert_same_bits(tensor, expected.state_dict[name], name)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("arcee_fusion", {}),
        ("model_stock", {"filter_wise": True}),
        ("nuslerp", {"nuslerp_flatten": False, "task_vectors": True}),
        ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
        ("sce", {"select_topk": 0.3}),
    ],
)
def test_chunks_may_cut_rows(
    method: str, params: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streamed in chunks that begin in the middle of rows, whole tensors are seen all the same."""
    monkeypatch.setattr(memory, "MAX_CHUNK", ops.BLOCK)
    base = state(0, torch.bfloat16, {"w": (700, 300)})
    models = {f"m{k}": near(base, k + 1) for k in range(count(method))}
    folders = {name: write(tmp_path / name, tensors) for name, tensors in models.items()}
    fm.merge(method, write(tmp_path / "base", base), folders, tmp_path / "out", params)
    expected = fm.merge_state_dicts(method, base, models, **params).state_dict["w"]  # type: ignore[arg-type]
    assert_same_bits(read(tmp_path / "out")["w"], expected, method)


ONE_BY_ONE: dict[str, list[dict[str, object]]] = {  # where one model is looked at after the other
    "sce": [{"select_topk": 0.3}],
    "free": [{"expert_density": 0.02, "scope": scope} for scope in ("tensor", "row", "global")],
    "dare_ties": [{"rescale": "l1"}],
}


def nearly_equal(dtype: torch.dtype, seed: int) -> torch.Tensor:
    """What differs from one in ways that float64 tells apart, and float32 rounds away."""
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(seed))
    return (order * 2.0**-30 + (order % 9 == 0) * 0.3).to(dtype).view(20, 200)


@pytest.mark.parametrize(
    ("method", "params"), [(name, params) for name in methods.names() for params in ({}, *ONE_BY_ONE.get(name, ()))]
)
def test_one_float64_model_makes_all_arithmetic_float64(method: str, params: dict[str, object]) -> None:
    """The bits of inputs that are widened beforehand, rounded once."""
    dtypes = [torch.float64, torch.float32, torch.bfloat16][: count(method)]
    mixed = {f"m{k}": {"w": nearly_equal(dtype, k)} for k, dtype in enumerate(dtypes)}
    wide = {name: {"w": own["w"].double()} for name, own in mixed.items()}
    found = fm.merge_state_dicts(method, {"w": torch.ones(20, 200)}, mixed, **params)  # type: ignore[arg-type]
    expected = fm.merge_state_dicts(method, {"w": torch.ones(20, 200).double()}, wide, **params)  # type: ignore[arg-type]
    assert found.stats == expected.stats
    assert_same_bits(found.state_dict["w"], expected.state_dict["w"].float(), method)
    for task, own in expected.experts.items():
        for part, as_wide in zip(found.experts[task]["w"], own["w"], strict=True):
            assert_same_bits(part, as_wide.to(part.dtype), task)


@pytest.mark.parametrize("method", methods.names())
def test_backends_give_the_same(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = state(0)
    models = {f"m{k}": near(base, k + 1) for k in range(count(method))}
    fast = fm.merge_state_dicts(method, base, models)
    monkeypatch.setitem(dispatch.PREFERENCE, "cpu", ("reference",))
    dispatch.chosen.cache_clear()
    slow = fm.merge_state_dicts(method, base, models)
    dispatch.chosen.cache_clear()
    for name in base:
        if "cutoff" in methods.get(method).model_fields:  # filters agree to 1e-6 of what they filter, before rounding
            torch.testing.assert_close(fast.state_dict[name], slow.state_dict[name], rtol=2**-7, atol=1e-6)
        else:
            assert_same_bits(fast.state_dict[name], slow.state_dict[name], name)


@pytest.mark.parametrize("method", methods.names())
def test_small_and_empty_tensors(method: str) -> None:
    shapes = {"scalar": (), "empty": (0, 4), "one": (1,)}
    base = state(0, torch.float32, shapes)
    models = {f"m{k}": state(k + 1, torch.float32, shapes) for k in range(count(method))}
    result = fm.merge_state_dicts(method, base, models)
    assert {name: tuple(t.shape) for name, t in result.state_dict.items()} == shapes


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "infinity"])
@pytest.mark.parametrize("method", methods.names())
def test_what_is_not_finite_is_named(method: str, value: float) -> None:
    """Tensor and model, wherever the value hides."""
    base = state(0, torch.float32)
    models = {f"m{k}": near(base, k + 1) for k in range(count(method))}
    guilty = list(models)[-1]
    models[guilty]["layers.0.weight"][7, 3] = value
    with pytest.raises(MergeError, match=f"layers.0.weight.*: NaN or infinity in {guilty};"):
        fm.merge_state_dicts(method, base, models)


@pytest.mark.parametrize(
    ("method", "params", "said"),
    [
        ("task_arithmatic", {}, "did you mean 'task_arithmetic'"),
        ("emr", {"rescal": "global"}, "no parameter 'rescal'; did you mean 'rescale'"),
        ("emr", {"rescale": "local"}, "rescale"),
        ("task_arithmetic", {"scale": float("nan")}, "scale"),
        ("task_arithmetic", {"scale": "much"}, "scale"),
        ("linear", {"weights": [1.0]}, "1 weights for 2 models"),
        ("linear", {"weights": {"m0": 1, "mx": 1}}, "weights are for m0, mx"),
        ("linear", {"weights": [1.0, -1.0]}, "sum to zero"),
        ("linear", {"weights": [0.3, -0.1 - 0.2]}, "sum to zero"),
        ("linear", {"weights": 10**400}, "expected numbers"),
        ("free", {"rescale": 10**400}, "a number that float32 can hold"),
        ("linear", {"modulators": True}, "no parameter 'modulators'"),
    ],
)
def test_bad_parameters(method: str, params: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        merged(method, **params)


def test_all_bad_parameters_at_once() -> None:
    with pytest.raises(InputError) as caught:
        merged("task_arithmetic", scal=1, weight=[1, 2], modulators="perhaps")
    assert len(caught.value.problems) == 3


class TwoPasses(Method):
    """Weighs models by their mean magnitude, which a first reading finds."""

    name = "two_passes"
    source = "this test"

    def passes(self, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        def measure(block: Block, _: Sequence[Statistics]) -> None:
            assert block.base is not None
            assert block.sums is not None
            ops.moments(block.base, block.models, sums=block.sums)

        def merge(block: Block, earlier: Sequence[Statistics]) -> None:
            magnitudes = earlier[0].total(0)
            weights = [m / sum(magnitudes) for m in magnitudes]
            block.nonfinite += ops.combine(block.base, block.models, weights, out=block.merged).nonfinite

        return (Pass(measure, rows=4), Pass(merge, writes=("merged",)))


def test_two_passes(tmp_path: Path) -> None:
    """The second pass sees the first one's sums over all tensors, streamed and in memory alike."""
    base, models = family(tmp_path)
    fm.merge(TwoPasses(), base, models, tmp_path / "out")
    states = {name: read(folder) for name, folder in models.items()}
    own = read(base)
    magnitudes = [sum((m[n].double() - own[n].double()).abs().sum() for n in own) for m in states.values()]
    weights = [float(m / sum(magnitudes)) for m in magnitudes]
    for name, tensor in read(tmp_path / "out").items():
        expected = ops.combine(own[name], [m[name] for m in states.values()], weights).merged
        assert torch.allclose(tensor.float(), expected.float(), rtol=1e-2)
        in_memory = fm.merge_state_dicts(TwoPasses(), own, states).state_dict[name]
        assert_same_bits(tensor, in_memory, name)
