"""gather and scatter: elements out of a tensor and back, and experts that do not fit one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensors import BF16, assert_same_bits, expert_of, make
from torch import Tensor

from fastmerge import dispatch, ops
from fastmerge.errors import InputError

CPU = [b for b in ("reference", "native") if not isinstance(dispatch.load(b), str)]
SIZE = 70_000  # a block and a part of one


def some(seed: int, share: float = 0.1) -> Tensor:
    return torch.rand(SIZE, generator=torch.Generator().manual_seed(seed)) < share


@given(st.lists(st.integers(0, 100), min_size=1, max_size=4), st.sampled_from(CPU))
def test_scatter_is_undone_by_what_was_gathered(seeds: list[int], backend: str) -> None:
    """Whatever experts overlap: what was there before each, put back in the reverse order, is every original bit."""
    theta = make(SIZE, BF16, 0)
    original, taken = theta.clone(), []
    for seed in seeds:
        expert = expert_of(some(seed), make(SIZE, BF16, seed + 1))
        taken.append(expert._replace(values=ops.gather(theta, expert, backend=backend)))
        ops.scatter(theta, [expert], backend=backend)
        assert_same_bits(theta[some(seed)], expert.values, "values")
    ops.scatter(theta, taken[::-1], backend=backend)
    assert torch.equal(theta.view(torch.int16), original.view(torch.int16))


@pytest.mark.parametrize("sizes", [(5, 700), (0, SIZE)])
def test_experts_of_known_sizes_are_cut_in_one_reading(sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the CUDA backend waits for: their number is known beforehand, without NaN."""
    choose, rooms = dispatch.choose, list[int]()
    kernel = choose("extract_topk", "cpu", "reference")

    def counted(*given: Any) -> int:
        rooms.append(given[-1].numel())
        return int(kernel(*given))

    monkeypatch.setattr(dispatch, "choose", lambda op, *_: counted if op == "extract_topk" else choose(op, *_))
    base, *models = (make(SIZE, BF16, seed, special=False) for seed in range(3))
    experts = ops.extract_largest(base, models, sizes, backend="reference")
    assert [expert.values.numel() for expert in experts] == rooms == [*sizes]


def test_any_shape_and_stride() -> None:
    where, values = some(1)[:600], make(600, BF16, 2)
    theta = make(600, BF16, 3).view(30, 20).t()
    expected = theta.contiguous().view(-1)
    expected[where] = values[where]
    ops.scatter(theta, [expert_of(where, values)])
    assert_same_bits(theta.contiguous().view(-1), expected, "strided")
    assert_same_bits(ops.gather(theta, expert_of(where, values)), values[where], "gathered")


FIT = expert_of(some(1), make(SIZE, BF16, 2))


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize(
    "unfit",
    [
        FIT._replace(counts=torch.tensor([-1, FIT.offsets.numel() + 1], dtype=torch.int32)),
        FIT._replace(counts=FIT.counts + 1),
        FIT._replace(counts=torch.zeros(2, dtype=torch.int32)),
        FIT._replace(offsets=torch.full_like(FIT.offsets, SIZE - ops.BLOCK)),
    ],
    ids=["negative", "too many", "too few", "beyond the end"],
)
def test_what_does_not_fit_changes_nothing(unfit: ops.Expert, backend: str) -> None:
    theta = make(SIZE, BF16, 0)
    before = theta.clone()
    with pytest.raises(InputError, match="counts and offsets are not those of"):
        ops.scatter(theta, [FIT, unfit], backend=backend)
    with pytest.raises(InputError, match="counts and offsets are not those of"):
        ops.gather(theta, unfit, backend=backend)
    assert_same_bits(theta, before, "theta")


@pytest.mark.parametrize(
    ("expert", "expected"),
    [
        (FIT._replace(counts=FIT.counts[:1]), r"counts must be torch.int32 \[2\]"),
        (FIT._replace(counts=FIT.counts.long()), "counts must be torch.int32"),
        (FIT._replace(offsets=FIT.offsets.int()), "offsets must be torch.uint16"),
        (FIT._replace(values=FIT.values[1:]), "offsets must be torch.uint16"),
        (FIT._replace(values=FIT.values.float()), "values must be torch.bfloat16"),
    ],
)
def test_bad_arguments(expert: ops.Expert, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        ops.scatter(make(SIZE, BF16, 0), [expert])
