"""Trimming, dropping, masking and voting: worked by hand, and what holds for any selection."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from combined import check_low_ranks, check_overflows, check_selections
from fastmerge.kernels.reference.philox import philox
from hypothesis import given
from hypothesis import strategies as st
from kept import PARTS, kept
from tensors import BF16, F32, F64, assert_same_bits, grid, make
from torch import Tensor

from fastmerge import dispatch, ops
from fastmerge.errors import InputError

CPU = [b for b in ("reference", "native") if not isinstance(dispatch.load(b), str)]
backends = st.sampled_from(CPU)
on_all_backends = pytest.mark.parametrize("backend", CPU)
VOTED = st.sampled_from(["weighted", "unweighted", "count"])


def cut_of_rank(tau: Tensor, rank: int) -> ops.Cut:
    """By sorting: largest magnitudes first, equal ones in order of index."""
    order = tau.abs().argsort(stable=True, descending=True)
    return ops.Cut(float(tau[order[rank - 1]].abs()), int(order[rank - 1]) + 1) if rank else ops.Cut(float("inf"), 0)


def bits(*rows: list[bool]) -> Tensor:
    return torch.stack([ops.pack_bits(torch.tensor(row)) for row in rows])


@on_all_backends
@pytest.mark.parametrize("check", [check_selections, check_overflows, check_low_ranks])
def test_what_must_be_told_apart(check: Callable[[str, str], int], backend: str) -> None:
    assert check(backend, "cpu") > 0


@on_all_backends
def test_ties_merging_worked_by_hand(backend: str) -> None:
    """Three 4 × 4 models, half of each kept, ties at the cut to the lowest index, a sum of zero elects +."""
    a = torch.tensor([[4, -1, 3, 0], [-5, 2, -2, 1], [6, 1, -1, -3], [2, 0, 7, -4]])
    b = torch.tensor([[-6, 2, 1, 1], [-1, 3, 5, -2], [-6, -1, 4, 0], [8, 2, -3, 1]])
    c = torch.tensor([[2, 4, -3, 1], [-1, -5, 1, 0], [2, -2, 1, 3], [-2, 6, -1, -4]])
    base = torch.ones(4, 4)
    trim = [ops.Window(bottom=ops.Cut(2, j)) for j in (6, 2, 9)]
    merged = ops.combine(
        base, [base + x for x in (a, b, c)], consensus="weighted", merge="mean", kept=ops.Kept(trim), backend=backend
    ).merged
    assert (merged - base).tolist() == [[3, 3, 3, 0], [-5, 2.5, 5, 0], [4, 0, 4, 3], [8, 6, 7, -4]]


@given(st.integers(1, 400), st.integers(1, 6), st.integers(0, 1 << 20), st.fractions(0, 1), VOTED, backends)
def test_ties_merging_by_sorting(n: int, k: int, seed: int, density: Fraction, vote: Any, backend: str) -> None:
    """The paper's three steps in float64, thresholds by sorting."""
    base, *models = (grid(n, F32, seed + i) for i in range(k + 1))
    weights = [(-1) ** i * (1 + i) / 2 for i in range(k)]
    taus = [m.double() - base.double() for m in models]
    cuts = [cut_of_rank(tau, int(density * n)) for tau in taus]
    for tau in taus:
        tau[tau.abs().argsort(stable=True, descending=True)[int(density * n) :]] = 0
    terms = torch.stack([w * tau for w, tau in zip(weights, taus, strict=True)])
    votes = {"weighted": terms, "unweighted": torch.stack(taus), "count": terms.sign()}[vote]
    elected = torch.where(votes.sum(0) < 0, -1.0, 1.0).double()
    agree = votes.sign() == elected
    total = (agree * torch.tensor(weights).double().unsqueeze(1)).sum(0)
    expected = base + (terms * agree).sum(0) / torch.where(total == 0, 1, total)
    window = ops.Kept(trim=[ops.Window(bottom=cut) for cut in cuts])
    merged = ops.combine(
        base, models, weights, consensus=vote, merge="weighted_mean", kept=window, backend=backend
    ).merged
    assert torch.allclose(merged.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("taus", "weights", "vote", "merge", "expected"),
    [
        ([2, 2], [1, -1], "weighted", "weighted_mean", 2),  # the terms cancel: + is elected
        ([2, 4], [1, -1], "unweighted", "weighted_mean", -2),  # the weights of those that agree cancel: not divided
        ([2, 4], [1, -1], "unweighted", "mean", -1),
        ([1, 1, -5], [1, 1, 1], "weighted", "mean", -5),
        ([1, 1, -5], [1, 1, 1], "count", "mean", 1),
        ([1, 1, -5], [0, 0, 1], "count", "mean", -5),  # a weight of zero has no vote by count
        ([3, -1], [0, 1], "unweighted", "mean", 0),  # but its task vector has one of its own
        ([-3, -1, 1], [2, 1, 1], "weighted", "weighted_mean", -7 / 3),
        ([0, 0], [1, 1], "weighted", "mean", 0),
        ([1, -2], [1, 1], "weighted", "sum", -2),
    ],
)
@on_all_backends
def test_votes(taus: list[float], weights: list[float], vote: Any, merge: Any, expected: float, backend: str) -> None:
    models = [torch.tensor([float(t)]) for t in taus]
    merged = ops.combine(torch.zeros(1), models, weights, consensus=vote, merge=merge, backend=backend).merged
    assert float(merged) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("j", [0, 1, 31, 33, 511, 512, 513, 65_535, 65_536, 65_553, 131_171, 131_172, 200_000])
@pytest.mark.parametrize("dtype", [BF16, F32, F64], ids=str)
@on_all_backends
def test_ties_go_by_index(backend: str, dtype: torch.dtype, j: int) -> None:
    """Of equal magnitudes those before the cut's index are above it, whichever chunk the cut falls in."""
    n = 2 * ops.BLOCK + 100
    base = torch.zeros(n, dtype=dtype)
    model = 1 - 2 * (torch.arange(n) % 3 == 0).to(dtype)
    cut = ops.Cut(1.0, j)
    for start, stop in ((0, n), (0, ops.BLOCK), (ops.BLOCK, n)):
        part = base[start:stop], [model[start:stop]]
        index = torch.arange(start, stop)
        for window, on in ((ops.Window(bottom=cut), index < j), (ops.Window(top=cut), index >= j)):
            selection = ops.Kept(trim=[window])
            merged = ops.combine(*part, kept=selection, offset=start, backend=backend).merged
            assert merged.equal(torch.where(on, part[1][0], 0))
            assert float(ops.kept_sums(*part, selection, offset=start, backend=backend).kept) == int(on.sum())


@pytest.mark.parametrize("parts", PARTS[1:], ids="+".join)
@on_all_backends
def test_chunks_do_not_matter(backend: str, parts: tuple[str, ...]) -> None:
    """A tensor cut at a multiple of the block gives the whole one's elements and sums, to the bit."""
    n, cut = 2 * ops.BLOCK + 1003, ops.BLOCK
    base, *models = (make(n, BF16, i, special=False) for i in range(4))
    whole = kept(base, models, 0, parts)
    vote: Any = {"consensus": "weighted", "merge": "mean", "backend": backend}
    expected, sums = ops.combine(base, models, kept=whole, **vote), ops.kept_sums(base, models, whole, backend=backend)
    pieces, running = [], torch.zeros(2, 3, dtype=F64)
    for part in (slice(0, cut), slice(cut, n)):
        own = whole._replace(keep=None if whole.keep is None else whole.keep[:, part.start // 8 : -(-part.stop // 8)])
        b, m = base[part], [x[part] for x in models]
        pieces.append(ops.combine(b, m, kept=own, offset=part.start, **vote).merged)
        ops.kept_sums(b, m, own, offset=part.start, sums=running, backend=backend)
    assert_same_bits(torch.cat(pieces), expected.merged, "merged")
    assert running.equal(torch.stack([sums.magnitude, sums.kept]))


@given(st.integers(0, 300), st.integers(0, 1 << 20), st.sampled_from(PARTS), st.integers(0, 3), backends)
def test_what_takes_no_part_counts_as_base(n: int, seed: int, parts: tuple[str, ...], block: int, backend: str) -> None:
    """A selection is the merge of models that equal base wherever they are not kept."""
    base, *models = (grid(n, F32, seed + i) for i in range(5))
    selection = kept(base, models, block * ops.BLOCK, parts)
    options: Any = {"offset": block * ops.BLOCK, "backend": backend}
    alone = []
    for i, model in enumerate(models):
        own = ops.Kept(*(None if part is None else part[i : i + 1] for part in selection))
        alone.append(ops.combine(base, [model], kept=own, **options))
    expected = ops.combine(base, [c.merged for c in alone], backend=backend)
    assert_same_bits(ops.combine(base, models, kept=selection, **options).merged, expected.merged, "merged")
    sums = ops.kept_sums(base, models, selection, **options)
    for i, c in enumerate(alone):
        assert float(sums.kept[i]) == float((c.merged - base).abs().double().sum())
        assert float(sums.magnitude[i]) == float((models[i] - base).abs().double().sum())


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32), st.integers(0, 2**30), st.integers(1, 700), backends)
def test_drops_are_those_of_philox(key: int, threshold: int, block: int, n: int, backend: str) -> None:
    """An element is dropped where its word is less than the threshold: none at 0, all at 2^32."""
    offset = block * ops.BLOCK
    selection = ops.Kept(drop=[ops.Drop(key, threshold)])
    merged = ops.combine(torch.zeros(n), [torch.ones(n)], kept=selection, offset=offset, backend=backend).merged
    assert merged.bool().equal(philox(torch.arange(offset, offset + n), key) >= threshold)


INFINITE, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("bad", "options"),
    [
        (INFINITE, {"kept": ops.Kept(trim=[ops.Window(top=ops.Cut(9, 0)), ops.Window()])}),
        (INFINITE, {"kept": ops.Kept(trim=[ops.Window(bottom=ops.Cut(INFINITE, 0)), ops.Window()])}),
        (NAN, {"kept": ops.Kept(drop=[ops.Drop(1, 2**32), ops.Drop(1, 0)])}),
        (NAN, {"kept": ops.Kept(keep=bits([False] * 5, [True] * 5))}),
        (NAN, {"consensus": "count"}),
        (-INFINITE, {"consensus": "count", "weights": [1, 1, 1]}),
    ],
    ids=["trimmed", "trimmed wholly", "dropped", "masked", "NaN outvoted", "infinity outvoted"],
)
@on_all_backends
def test_hidden_non_finite_elements_are_counted(bad: float, options: dict[str, Any], backend: str) -> None:
    """Each once, whatever number of models it is in, though the merged tensor is finite."""
    base, good = torch.zeros(5), torch.ones(5)
    first = torch.tensor([1, bad, 1, bad, 1])
    models = [first, good] if "weights" not in options else [first, good, good]
    result = ops.combine(base, models, backend=backend, **options)
    assert result.merged.isfinite().all()
    assert result.nonfinite == 2
    twice = torch.tensor([NAN, NAN, 1, 1, 1])
    assert ops.combine(base, [first, twice], consensus="count", backend=backend).nonfinite == 3


@on_all_backends
def test_nan_is_not_trimmed(backend: str) -> None:
    model = torch.tensor([NAN, 1.0])
    for cut in (ops.Cut(0.5, 0), ops.Cut(INFINITE, 0), ops.Cut(0.0, 9)):
        for window in (ops.Window(top=cut), ops.Window(bottom=cut)):
            merged = ops.combine(None, [model], kept=ops.Kept(trim=[window]), backend=backend).merged
            assert merged[0].isnan()


@on_all_backends
def test_a_cut_at_nan_divides_nothing(backend: str) -> None:
    """Nothing is above it, not even infinity before its index, and nothing below."""
    model = torch.tensor([INFINITE, 1.0, NAN])
    for window in (ops.Window(top=ops.Cut(NAN, 9)), ops.Window(bottom=ops.Cut(NAN, 9))):
        merged = ops.combine(None, [model], kept=ops.Kept(trim=[window]), backend=backend).merged
        assert_same_bits(merged, model, "merged")


@on_all_backends
def test_selecting_nothing_changes_nothing(backend: str) -> None:
    base, *models = (make(1000, BF16, i) for i in range(4))
    plain = ops.combine(base, models, backend=backend)
    for selection in (ops.Kept(), ops.Kept(trim=[ops.Window()] * 3), ops.Kept(drop=[ops.Drop(7, 0)] * 3)):
        assert_same_bits(ops.combine(base, models, kept=selection, backend=backend).merged, plain.merged, "merged")


@on_all_backends
def test_an_output_may_replace_base(backend: str) -> None:
    base, *models = (make(70_001, BF16, i) for i in range(4))
    options: Any = {"kept": kept(base, models, 0, ("trim", "keep")), "consensus": "count", "backend": backend}
    expected = ops.combine(base, models, **options)
    assert_same_bits(ops.combine(base, models, out=base, **options).merged, expected.merged, "merged")


ONE = torch.ones(4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kept": ops.Kept(trim=[ops.Window()])}, "2 models need as many windows in trim, there are 1"),
        ({"kept": ops.Kept(drop=[ops.Drop(0, 0)] * 3)}, "2 models need as many drops, there are 3"),
        ({"kept": ops.Kept(drop=[ops.Drop(0, 2**32 + 1)] * 2)}, r"threshold of drop\[1\] must be from 0 to 2\^32"),
        ({"kept": ops.Kept(drop=[ops.Drop(2**64, 0)] * 2)}, r"key of drop\[0\] must have 64 bits"),
        ({"kept": ops.Kept(trim=[ops.Window(), ops.Window(top=ops.Cut(-1, 0))])}, r"top of trim\[1\]"),
        ({"kept": ops.Kept(trim=[ops.Window(), ops.Window(bottom=ops.Cut(0, -1))])}, r"bottom of trim\[1\]"),
        ({"kept": ops.Kept(keep=torch.zeros(2, 2, dtype=torch.uint8))}, r"keep must be torch.uint8 \[2, 1\]"),
        ({"offset": 100}, "offset must be a multiple of 65536, it is 100"),
        ({"consensus": "vote"}, "not 'vote'"),
        ({"merge": "mean"}, "merge 'mean' needs a vote"),
        ({"merge": "median", "consensus": "count"}, "not 'median'"),
        ({"normalize": True, "consensus": "count"}, "normalize is for consensus 'sum' and 'max'"),
    ],
)
def test_bad_selections(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        ops.combine(ONE, [ONE, ONE], **options)
