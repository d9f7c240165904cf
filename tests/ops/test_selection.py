"""Selection by magnitude: exact whatever the tensor, ties to the lowest index."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from selections import HARD, ranks_of
from tensors import BF16, DTYPES, grid, make
from torch import Tensor

from fastmerge import dispatch, ops
from fastmerge.errors import InputError

CPU = [b for b in ("reference", "native") if not isinstance(dispatch.load(b), str)]
SIZES = (1, 511, 65_537, 200_003)


def by_sorting(base: Tensor, model: Tensor, ranks: list[int]) -> list[ops.Cut]:
    """Cuts as NumPy's stable sort finds them: −|τ| ascending, NaN moved to the front."""
    wide = ops.working_dtype([base, model])
    size = (model.to(wide) - base.to(wide)).abs().numpy()
    order = np.argsort(np.where(np.isnan(size), -np.inf, -size), kind="stable")
    order = np.concatenate([order[np.isnan(size[order])], order[~np.isnan(size[order])]])
    return [ops.Cut(float(size[order[r - 1]]), int(order[r - 1]) + 1) if r else ops.Cut(float("inf"), 0) for r in ranks]


def assert_cuts(actual: list[ops.Cut], expected: list[ops.Cut]) -> None:
    np.testing.assert_array_equal([c.magnitude for c in actual], [c.magnitude for c in expected])
    assert [c.index for c in actual] == [c.index for c in expected]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("backend", CPU)
def test_cuts_of_hard_tensors(backend: str, name: str, n: int) -> None:
    """Where many magnitudes are equal, or all are nearly so, the cut is still the one of a stable sort."""
    base, model = HARD[name](n)
    ranks = ranks_of(n)
    assert_cuts(ops.kth_magnitude(base, [model], [ranks], backend=backend)[0], by_sorting(base, model, ranks))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuts_of_every_rank(dtype: torch.dtype) -> None:
    """All ranks of two models at once, more than lists have room for."""
    base, models = make(700, dtype, 1), [make(700, dtype, 2), make(700, dtype, 3, special=False)]
    found = ops.kth_magnitude(base, models, [range(701)] * 2)
    for model, cuts in zip(models, found, strict=True):
        assert_cuts(cuts, by_sorting(base, model, list(range(701))))


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, 3e-39, -3e-39]), min_size=1, max_size=40), st.data())
def test_a_cut_has_its_rank_above(values: list[float], data: st.DataObject) -> None:
    """Exactly r elements are above the cut of rank r, and none of them is smaller than one that is not."""
    tau = torch.tensor(values)
    rank = data.draw(st.integers(0, len(values)))
    ((cut,),) = ops.kth_magnitude(torch.zeros_like(tau), [tau], [[rank]], backend=data.draw(st.sampled_from(CPU)))
    size = tau.abs()
    above = (size > cut.magnitude) | ((size == cut.magnitude) & (torch.arange(len(values)) < cut.index))
    assert int(above.sum()) == rank
    if 0 < rank < len(values):
        assert size[above].min() >= size[~above].max()


def test_histograms_add_up() -> None:
    """Over chunks of a tensor, over tensors of different dtypes where wide, and over a bucket's bins by lower bits."""
    base, models = make(100_003, BF16, 1), [make(100_003, BF16, 2), make(100_003, BF16, 3)]
    whole, chunked = ops.magnitude_histogram(base, models), torch.zeros(2, 2048, dtype=torch.int64)
    for part in (slice(0, 70_001), slice(70_001, None)):
        ops.magnitude_histogram(base[part], [m[part] for m in models], counts=chunked)
    assert chunked.equal(whole)
    assert whole.sum(1).tolist() == [100_003, 100_003]
    exact = grid(1000, BF16, 1), [grid(1000, BF16, 2)]
    assert ops.magnitude_histogram(*exact, wide=True).equal(ops.magnitude_histogram(exact[0].double(), exact[1]))
    largest = whole.argmax(1)
    lower = ops.magnitude_histogram(base, models, shift=7, bits=13, prefixes=largest.tolist())
    assert lower.sum(1).equal(whole.gather(1, largest[:, None])[:, 0])


def test_a_known_histogram_saves_a_reading() -> None:
    base, models = grid(1000, BF16, 1), [grid(1000, BF16, 2)]
    histogram = ops.magnitude_histogram(base, models)
    assert ops.kth_magnitude(base, models, [[3]], histogram=histogram) == ops.kth_magnitude(base, models, [[3]])


def test_a_wrong_histogram_is_found_out() -> None:
    """One of another tensor, with as many elements: it cannot make lists overflow."""
    base, other = torch.zeros(100_000), torch.full((100_000,), 1.7)
    of_other = ops.magnitude_histogram(base, [other])
    spread = ops.magnitude_histogram(base, [torch.linspace(1.6, 1.9, 100_000)])
    for wrong, model in ((of_other, base), (of_other, other * 2), (spread, torch.full_like(other, 1.8))):
        if "native" in CPU:
            with pytest.raises(ValueError, match="not that of these tensors"):
                ops.kth_magnitude(base, [model], [[70_000]], histogram=wrong, backend="native")


BASE = torch.zeros(10)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: ops.kth_magnitude(BASE, [BASE], [[11]]), r"rank 11 of models\[0\] is not one of 0 to 10"),
        (lambda: ops.kth_magnitude(BASE, [BASE, BASE], [[1], [-1]]), r"rank -1 of models\[1\]"),
        (lambda: ops.kth_magnitude(BASE, [BASE], []), "ranks must be 1 lists"),
        (lambda: ops.kth_magnitude(BASE, [BASE, BASE], [[1], [1, 2]]), "lists of equal length"),
        (lambda: ops.kth_magnitude(BASE, [BASE], [[1]], histogram=torch.zeros(1, 2048).long()), "not of 10 elements"),
        (lambda: ops.kth_magnitude(BASE, [BASE], [[1]], histogram=torch.zeros(2048)), "histogram must be torch.int64"),
        (lambda: ops.magnitude_histogram(BASE, [BASE], bits=14), "1 to 13 of 31 bits"),
        (lambda: ops.magnitude_histogram(BASE, [BASE], shift=21), "shift 21 and bits 11"),
        (lambda: ops.magnitude_histogram(BASE, [BASE], shift=10, prefixes=[1, 2]), "1 models need as many prefixes"),
        (lambda: ops.magnitude_histogram(BASE, [BASE], shift=10, bits=10, prefixes=[2048]), "has not the 11 bits"),
        (lambda: ops.magnitude_histogram(BASE, [BASE[:3]]), r"models\[0\] has shape \[3\]"),
    ],
)
def test_bad_arguments(call: Callable[[], object], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        call()
