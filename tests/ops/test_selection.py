"""Selection by magnitude: exact whatever the tensor, ties to the lowest index."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from fastmerge.kernels.reference.philox import philox
from hypothesis import given
from hypothesis import strategies as st
from selections import HARD, ranks_of, thresholds
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


LARGE = 2_100_003  # elements, of which a sample is taken first


def hidden(n: int) -> Tensor:
    """Small wherever the native sample looks (brackets.cpp), large elsewhere: it tells nothing true."""
    tau = torch.rand(n, generator=torch.Generator().manual_seed(4)) + 1
    stride = n // 2048 // 32 * 32
    for line in range(2048):
        mixed = (line + 1) * 0x9E3779B97F4A7C15 % (1 << 64)
        start = line * stride + (mixed >> 32) % (stride // 32) * 32
        tau[start : start + 32] /= 1000
    return tau


SAMPLED = {
    "normal": lambda n: torch.randn(n, generator=torch.Generator().manual_seed(1)),
    "rows": lambda n: (
        torch.randn(n, generator=torch.Generator().manual_seed(2)) * (torch.arange(n) // 4096 % 97).exp2()
    ),
    "sorted": lambda n: torch.linspace(-1, 1, n),
    "hidden": hidden,
    "few": lambda n: (torch.arange(n) % 9973 == 0) * torch.linspace(1, 2, n),
    "NaN": lambda n: torch.where(torch.arange(n) % 101 == 0, torch.nan, torch.linspace(1, 2, n)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.skipif("native" not in CPU, reason="the native backend samples")
def test_cuts_of_sampled_tensors(name: str, dtype: torch.dtype) -> None:
    """Whether the sample tells where a cut is, or misleads, the cut is the one of a stable sort."""
    model = SAMPLED[name](LARGE).to(dtype)
    base, ranks = torch.zeros(LARGE, dtype=dtype), [1, LARGE // 100, LARGE // 5, LARGE // 2, LARGE - 1]
    found = ops.kth_magnitude(base, [model, -model], [ranks] * 2, backend="native")
    assert [c.index for c in found[0]] == [c.index for c in found[1]]
    assert_cuts(found[0], by_sorting(base, model, ranks))


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


def spread(expert: ops.Expert, n: int) -> Tensor:
    """An expert as a dense tensor of float64, written out in Python."""
    dense = torch.zeros(n, dtype=torch.float64)
    block = [b for b, count in enumerate(expert.counts.tolist()) for _ in range(count)]
    for b, offset, value in zip(block, expert.offsets.tolist(), expert.values.tolist(), strict=True):
        dense[b * ops.BLOCK + offset] = value
    return dense


@pytest.mark.parametrize("name", [name for name in HARD if "NaN" not in name])
@pytest.mark.parametrize("backend", CPU)
def test_an_expert_is_the_task_vector_above_the_cut(backend: str, name: str) -> None:
    """Its elements are the first k of a stable sort, with their values; adding it to zeros gives just them."""
    n = 70_001
    base, model = HARD[name](n)
    tau = (model.double() - base.double()).to(ops.working_dtype([base, model]))
    for k in (0, 1, 700, n // 2, n):
        expert = ops.extract_topk(base, model, k, dtype=tau.dtype, backend=backend)
        order = np.argsort(-tau.abs().numpy(), kind="stable")[:k]
        expected = torch.zeros(n, dtype=tau.dtype)
        expected[order] = tau[order]
        built = torch.zeros(n, dtype=tau.dtype)
        ops.scatter_add(built, expert, backend=backend)
        assert built.equal(expected)
        assert int(expert.counts.sum()) == expert.offsets.numel() == expert.values.numel() == k
        if k == 700:
            assert spread(expert, n).equal(expected.double())
            assert ops.extract_topk(base, model, cut=ops.Cut(*by_sorting(base, model, [k])[0])).offsets.equal(
                expert.offsets
            )


@pytest.mark.parametrize("name", [name for name in HARD if "NaN" not in name])
@pytest.mark.parametrize("backend", CPU)
def test_experts_of_several_models_are_those_of_each(backend: str, name: str) -> None:
    """Of tensors that a sample is taken of, and others; few elements, many, all and none."""
    for n in (3_000, (1 << 20) + 4_321):
        base, model = HARD[name](n)
        models = [model, model.roll(7), base, model.to(torch.float32)]
        wide = ops.working_dtype([base, *models])
        for ks in ([n // 100] * 4, [1, 0, n, n // 2]):
            found = ops.extract_largest(base, models, ks, backend=backend)
            for own, k, expert in zip(models, ks, found, strict=True):
                alone = ops.extract_topk(base, own, k, dtype=wide, backend=backend)
                assert all(a.equal(b) for a, b in zip(expert, alone, strict=True)), (n, k)


@pytest.mark.skipif("native" not in CPU, reason="no native backend here")
@pytest.mark.parametrize("dtype", [BF16, torch.float32, torch.float64], ids=str)
def test_one_reading_finds_the_largest(dtype: torch.dtype) -> None:
    """Where magnitudes are spread as weights' are, the sample tells enough."""
    from fastmerge.kernels import native

    n, k = 3 << 20, (3 << 20) // 100
    base, *models = (torch.randn(n, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(4))
    room = ops.extraction_room(k, n)
    wide = ops.working_dtype([base])
    rooms = [
        (
            torch.empty(-(-n // ops.BLOCK), dtype=torch.int32),
            torch.empty(room, dtype=torch.uint16),
            torch.empty(room, dtype=wide),
        )
        for _ in models
    ]
    assert native.extract_largest(base, models, [k] * 3, rooms) == [1, 1, 1]


def test_an_expert_of_nan_is_smaller() -> None:
    """NaN take places of the k largest, but are not extracted."""
    base, model = HARD["mostly NaN"](1000)
    missing = int((model - base).isnan().sum())
    assert ops.extract_topk(base, model, missing).values.numel() == 0
    expert = ops.extract_topk(base, model, missing + 50)
    assert expert.values.numel() == expert.offsets.numel() == int(expert.counts.sum()) == 50


def test_experts_of_any_shape_and_dtype() -> None:
    base, model = make(60, BF16, 1, special=False).view(6, 10), make(60, BF16, 2, special=False).view(6, 10)
    flat = ops.extract_topk(base.view(-1), model.view(-1), 20)
    expert = ops.extract_topk(base, model, 20)
    assert expert.values.dtype == BF16
    assert all(a.equal(b) for a, b in zip(expert, flat, strict=True))
    theta, transposed = torch.zeros(6, 10), torch.zeros(10, 6).t()
    ops.scatter_add(theta, expert, 0.5)
    ops.scatter_add(transposed, expert, 0.5)
    assert transposed.equal(theta)
    assert theta.view(-1).equal(0.5 * spread(flat, 60).float())
    assert ops.extract_topk(base, model, 3, dtype=torch.float64).values.dtype == torch.float64


@given(st.integers(0, 300), st.integers(0, 300), st.sampled_from(CPU))
def test_adding_and_taking_away(n: int, k: int, backend: str) -> None:
    """On numbers whose sums are exact an expert is taken away without a trace."""
    base, model, theta = grid(n, BF16, 1), grid(n, BF16, 2), grid(n, BF16, 3)
    expert = ops.extract_topk(base, model, min(k, n), backend=backend)
    changed = theta.clone()
    ops.scatter_add(changed, expert, 2.0, backend=backend)
    assert int((changed != theta).sum()) == int((expert.values != 0).sum())
    ops.scatter_add(changed, expert, -2.0, backend=backend)
    assert changed.equal(theta)


def keep_by_rank(base: Tensor, model: Tensor, columns: int, key: int, limits: Tensor) -> Tensor:
    """What rank_drop keeps, by sorting rows twice in NumPy; NaN sort last."""
    wide = ops.working_dtype([base, model])
    size = (model.to(wide) - base.to(wide)).abs().numpy().reshape(-1, columns)
    ranks = np.argsort(np.argsort(size, axis=1, kind="stable"), axis=1)
    return philox(torch.arange(base.numel()), key) >= limits[torch.from_numpy(ranks).flatten()]


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("backend", CPU)
def test_ranks_in_rows_of_hard_tensors(backend: str, name: str) -> None:
    rows, columns, key = 19, 2001, 0xFEDCBA9876543210
    base, model = HARD[name](rows * columns)
    packed = ops.rank_drop(base, [model], columns, [key], [thresholds(columns)], backend=backend)[0]
    expected = keep_by_rank(base, model, columns, key, thresholds(columns))
    assert ops.unpack_bits(packed, expected.shape).equal(expected)


@pytest.mark.parametrize("dtype", [BF16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("rows", "columns"),
    [(7, 1), (1, 7), (31, 24), (31, 65), (20, 200), (13, 1001), (20, 4096), (5, 14336), (2, 70001)],
    ids=str,
)
def test_ranks_in_rows_of_any_length(rows: int, columns: int, dtype: torch.dtype) -> None:
    """Also where thresholds are so far apart that many ranks matter; models have their own keys and thresholds."""
    n = rows * columns
    base, models = make(n, dtype, 1), [make(n, dtype, 2), make(n, dtype, 3, special=False)]
    keys, limits = [1, 2**63], [thresholds(columns), thresholds(columns, 0.5, 0.99)]
    packed = ops.rank_drop(base, models, columns, keys, limits)
    for mask, model, key, limit in zip(packed, models, keys, limits, strict=True):
        expected = keep_by_rank(base, model, columns, key, limit)
        assert ops.unpack_bits(mask, expected.shape).equal(expected)


def steps(columns: int) -> Tensor:
    """Thresholds that fall in few steps, from all words to none."""
    return (4 - 5 * torch.arange(columns) // columns) * (1 << 30)


KINDS: dict[str, Callable[[int], Tensor]] = {
    "near each other": lambda columns: thresholds(columns, 0.5, 0.01),
    "of all words": lambda columns: thresholds(columns, 0.5, 1.0),
    "of few words": lambda columns: 5 + columns // 50 - torch.arange(columns) // 50 + (1 << 31),
    "in steps": steps,
    "rising": lambda columns: thresholds(columns).flip(0),
    "one": lambda columns: torch.full((columns,), 1 << 31),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [128, 129, 511, 512, 1500, 2048])
@pytest.mark.parametrize("backend", CPU)
def test_ranks_among_ties(backend: str, columns: int, kind: str) -> None:
    """As fine-tuned weights have them: most task vectors are zero, the others few multiples of steps that differ. Rows
    of one scale stand beside those of another."""
    rows, key, generator = 21, 77, torch.Generator().manual_seed(columns)
    base = 2.0 ** torch.randint(-6, 2, (rows, columns), generator=generator)
    last = base * 2.0**-7 * torch.tensor([1, 32, 1 / 32])[torch.arange(rows) % 3, None]
    tau = torch.randn(rows, columns, generator=generator).mul(torch.rand(rows, 1, generator=generator)).round() * last
    model, limits = (base + tau).flatten(), KINDS[kind](columns)
    packed = ops.rank_drop(base.flatten(), [model], columns, [key], [limits], backend=backend)[0]
    expected = keep_by_rank(base.flatten(), model, columns, key, limits)
    assert ops.unpack_bits(packed, expected.shape).equal(expected)


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("columns", [40, 700])
def test_words_at_thresholds(columns: int, backend: str) -> None:
    """An element whose word is its rank's threshold is kept, and one whose word is the next below is dropped."""
    base, model = make(columns, BF16, 1, special=False), make(columns, BF16, 2, special=False)
    words = philox(torch.arange(columns), 9)
    order = (model.float() - base.float()).abs().argsort(stable=True)
    for rank in range(0, columns, 7):
        element = int(order[rank])
        word = int(words[element])
        for drops in (0, 1):
            limits = torch.full((columns,), word)
            limits[: rank + drops] += 1
            packed = ops.rank_drop(base, [model], columns, [9], [limits], backend=backend)[0]
            assert ops.unpack_bits(packed, (columns,))[element] == (not drops)


@pytest.mark.parametrize("columns", [1, 3, 1000, 262_144])
@pytest.mark.parametrize("backend", CPU)
def test_ranks_in_parts(backend: str, columns: int) -> None:
    """Parts of a tensor give the bits of the whole, wherever they cut rows."""
    n = 3 * 1_000 * 87 + (columns == 262_144) * 1_144
    base, model = make(n, BF16, 1), make(n, BF16, 2)
    whole = ops.rank_drop(base, [model], columns, [5], [thresholds(columns)], backend=backend)
    cuts = [0, ops.BLOCK, 3 * ops.BLOCK, n]
    parts = [
        ops.rank_drop(base, [model], columns, [5], [thresholds(columns)], start=a, stop=b, backend=backend)
        for a, b in pairwise(cuts)
    ]
    assert torch.cat(parts, 1).equal(whole)


@pytest.mark.parametrize("backend", CPU)
def test_thresholds_are_probabilities(backend: str) -> None:
    """Of 0 and 2^32 nothing and everything is dropped, and between them the share that was asked for, rank by rank."""
    n, columns = 40_000, 100
    base, model = make(n, BF16, 1, special=False), make(n, BF16, 2, special=False)

    def keep(limits: Tensor) -> Tensor:
        mask = ops.rank_drop(base, [model], columns, [3], [limits], backend=backend)[0]
        return ops.unpack_bits(mask, (n,)).double()

    assert keep(torch.zeros(columns).long()).all()
    assert not keep(torch.full((columns,), 2**32)).any()
    assert abs(keep(torch.full((columns,), int(0.7 * 2**32))).mean() - 0.3) < 5 * (0.21 / n) ** 0.5
    kept = keep(thresholds(columns, 0.5, 0.8)).view(-1, columns)
    order = (model.float() - base.float()).abs().view(-1, columns).sort(dim=1, stable=True).indices
    by_rank = kept.gather(1, order).mean(0)
    assert (by_rank - torch.linspace(0.1, 0.9, columns)).abs().max() < 5 * (0.25 / 400) ** 0.5


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


BASE, LIMITS = torch.zeros(10), torch.zeros(5).long()
LONG_ROW = (1 << 29) + 1  # of which eight end on a byte
LONG = torch.zeros(1).expand(8 * LONG_ROW)
EXPERT = ops.extract_topk(BASE, torch.arange(10.0), 4)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: ops.kth_magnitude(BASE, [BASE], [[11]]), r"rank 11 of models\[0\] is not one of 0 to 10"),
        (lambda: ops.kth_magnitude(BASE, [BASE, BASE], [[1], [-1]]), r"rank -1 of models\[1\]"),
        (lambda: ops.kth_magnitude(BASE, [BASE], []), "ranks must be 1 lists"),
        (lambda: ops.kth_magnitude(BASE, [BASE, BASE], [[1], [1, 2]]), "lists of equal length"),
        (lambda: ops.rank_drop(BASE, [BASE], 3, [1], [LIMITS]), "10 elements are not rows of 3"),
        (lambda: ops.rank_drop(LONG, [LONG], LONG_ROW, [1], [LIMITS]), "4294967304 elements, 2.32 or more"),
        (lambda: ops.rank_drop(BASE, [BASE], 5, [1], [LIMITS], start=8), "a multiple of 65536"),
        (lambda: ops.rank_drop(BASE, [BASE], 5, [1], [LIMITS], stop=11), "stop 11 must be in order in 0 … 10"),
        (lambda: ops.rank_drop(BASE, [BASE], 5, [], [LIMITS]), "1 models need as many keys"),
        (lambda: ops.rank_drop(BASE, [BASE], 5, [-1], [LIMITS]), "keys must be of 64 bits"),
        (lambda: ops.rank_drop(BASE, [BASE], 5, [1], [LIMITS[:4]]), r"thresholds\[0\] must be torch.int64 \[5\]"),
        (lambda: ops.rank_drop(BASE, [BASE], 5, [1], [LIMITS - 1]), r"thresholds\[0\] must be in 0"),
        (lambda: ops.rank_drop(BASE, [BASE], 5, [1], [LIMITS], out=LIMITS), r"out must be torch.uint8 \[1, 2\]"),
        (lambda: ops.extract_topk(BASE, BASE), "either k or a cut"),
        (lambda: ops.extract_topk(BASE, BASE, 1, cut=ops.Cut(0.0, 0)), "either k or a cut"),
        (lambda: ops.extract_topk(BASE, BASE, 11), "rank 11"),
        (lambda: ops.extract_topk(BASE, BASE, 1, dtype=torch.int32), "values is torch.int32"),
        (lambda: ops.extract_topk(BASE, BASE[:3], 1), "model has shape"),
        (lambda: ops.scatter_add(BASE[:3], EXPERT), "not those of 4 of 3 elements"),
        (lambda: ops.scatter_add(BASE, EXPERT._replace(counts=EXPERT.counts - 1)), "not those of 4 of 10"),
        (lambda: ops.scatter_add(BASE, EXPERT._replace(counts=EXPERT.counts[:0])), r"counts must be torch.int32 \[1\]"),
        (lambda: ops.scatter_add(BASE, EXPERT._replace(offsets=EXPERT.offsets[:3])), r"offsets must be .* \[4\]"),
        (lambda: ops.scatter_add(BASE, EXPERT._replace(values=EXPERT.offsets)), "values is torch.uint16"),
        (lambda: ops.scatter_add(BASE.int(), EXPERT), "theta is torch.int32"),
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
