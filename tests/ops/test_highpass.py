"""FR-Merging's filter: against its definition bin by bin, its laws, and what must not change its bits."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensors import BF16, F16, F32, F64, assert_same_bits, at_odd_address, make, poisoned
from torch import Tensor

from fastmerge import dispatch, ops
from fastmerge.cutoff import Cutoff
from fastmerge.errors import InputError

CPU = [b for b in ("reference", "native") if not isinstance(dispatch.load(b), str)]
TOLERANCE = {F32: 1e-6, F64: 1e-13}  # of the largest magnitude filtered
SHAPES = [
    (1, 1),
    (1, 30),
    (30, 1),
    (2, 3),
    (16, 16),
    (17, 17),
    (31, 37),
    (64, 24),
    (24, 64),
    (5, 400),
    (400, 5),
    (131, 257),
]
FILTERS: list[dict[str, Any]] = [
    {},
    {"cutoff": 0.05},
    {"cutoff": 1.0},
    {"cutoff": 1.3},
    {"bins": 0.3},
    {"bins": 0.9},
    {"convention": "released"},
    {"convention": "released", "ratio": 0.35},
    {"convention": "released", "ratio": 0.02},
]

backends = st.sampled_from(CPU)
lengths = st.integers(1, 40)
decimals = st.integers(0, 150).map(lambda i: i / 100)
native_only = pytest.mark.skipif("native" not in CPU, reason="no native backend here")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Of torch's: on matrices this small several wait for each other more than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def name(value: object) -> str:
    if isinstance(value, dict):
        return "-".join(f"{k}={v}" for k, v in value.items()) or "default"
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def noise(shape: tuple[int, ...], dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    """Noise about a mean, which low frequencies carry."""
    n = int(torch.Size(shape).numel())
    return (make(n, F64, seed, special=False) + 0.75).to(dtype).view(shape)


def distances(h: int, w: int, convention: str) -> Tensor:
    """Squared distance of every bin from the frequency zero, or from the middle of the unshifted spectrum: [h, w]."""
    if convention == "released":
        rows, columns = [(y - h // 2) ** 2 for y in range(h)], [(x - w // 2) ** 2 for x in range(w)]
    else:
        rows, columns = ([(i if 2 * i <= n else i - n) ** 2 for i in range(n)] for n in (h, w))
    return torch.tensor(rows)[:, None] + torch.tensor(columns)


def kept(h: int, w: int, name: str, value: Fraction) -> Tensor:
    """The bins that a cutoff, a fraction of the bins or a ratio keeps: [h, w], 0 or 1."""
    squares = distances(h, w, "released" if name == "ratio" else "paper")
    if name == "ratio":
        mask = squares <= math.floor((value * min(h, w)) ** 2)
    elif name == "cutoff":
        mask = squares >= math.ceil((value * min(h, w) / 2) ** 2)
    else:  # all that are as near as the last that must go go with it
        gone = squares.flatten().sort().values[: math.ceil(value * h * w)]
        mask = squares > gone[-1] if len(gone) else squares >= 0
    return mask.to(F64)


def definition(v: Tensor, options: dict[str, Any]) -> Tensor:
    """The filtered matrices by the full complex transform in float64."""
    default = {"ratio": 0.7} if options.get("convention") == "released" else {"cutoff": 0.3}
    ((name, value),) = ({k: x for k, x in options.items() if k != "convention"} or default).items()
    mask = kept(*v.shape[-2:], name, Fraction(str(value)))
    return torch.fft.ifft2(mask * torch.fft.fft2(v.to(F64))).real


def assert_near(actual: Tensor, expected: Tensor, v: Tensor, scale: float = 1.0) -> None:
    """Within the tolerance of what was filtered."""
    error = (actual.to(F64) - expected.to(F64)).abs().max()
    assert error <= scale * TOLERANCE[actual.dtype] * v.abs().max(), f"{error / v.abs().max():.2e} of the largest"


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("options", FILTERS, ids=name)
@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_is_the_definition(shape: tuple[int, int], options: dict[str, Any], dtype: torch.dtype, backend: str) -> None:
    x = noise(shape, dtype)
    y = ops.highpass(x, backend=backend, **options)
    assert y.dtype == dtype
    assert_near(y, definition(x, options), x)


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("options", [{}, {"convention": "released"}], ids=name)
@pytest.mark.parametrize("shape", [(700, 1003), (1003, 700), (1200, 2048), (3, 60_000), (1009, 1009)], ids=name)
def test_is_the_definition_over_many_blocks(shape: tuple[int, int], options: dict[str, Any], backend: str) -> None:
    x = noise(shape)
    assert_near(ops.highpass(x, backend=backend, **options), ops.highpass(x.to(F64), backend="reference", **options), x)


@given(lengths, lengths, decimals, st.integers(0, 1 << 20), backends)
def test_any_cutoff(h: int, w: int, value: float, seed: int, backend: str) -> None:
    x = noise((h, w), F32, seed)
    for options in ({"cutoff": value}, {"convention": "released", "ratio": value}, {"bins": min(value, 1.0)}):
        assert_near(ops.highpass(x, backend=backend, **options), definition(x, options), x)


@given(lengths, lengths, st.integers(0, 100).map(lambda i: i / 100))
def test_bins_is_the_smallest_cutoff_that_removes_so_many(h: int, w: int, fraction: float) -> None:
    squares, needed = distances(h, w, "paper"), math.ceil(Fraction(str(fraction)) * h * w)
    limit = Cutoff(bins=fraction).limit(h, w)
    assert (squares < limit).sum() >= needed
    assert limit == 0 or (squares < limit - 1).sum() < needed


def test_decimals_are_exact() -> None:
    """cutoff 0.3 of 5120 is a distance of 768, whose bins stay; 0.07 of 100 bins are 7."""
    assert Cutoff(cutoff=0.3).limit(5120, 13824) == 768**2
    assert Cutoff(cutoff=0.1).limit(60, 60) == 9
    assert Cutoff(convention="released", ratio=0.7).limit(10, 30) == 49
    assert int((distances(10, 10, "paper") < Cutoff(bins=0.07).limit(10, 10)).sum()) == 9


@native_only
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("n", [*range(1, 20), 22, 26, 43, 121, 127, 131, 169, 254, 262, 343, 480, 1009, 1024, 2816])
def test_transforms_of_any_length(n: int, dtype: torch.dtype) -> None:
    """Steps by eights, fours, twos and odd primes, and convolutions where a prime is large; both ways round."""
    for shape in ((9, n), (n, 9), (2, 2 * n)):
        x = noise(shape, dtype, n)
        for options in ({}, {"cutoff": 1.1}):
            assert_near(ops.highpass(x, **options), definition(x, options), x)


@native_only
@given(st.integers(1, 1 << 24))
def test_radices_make_up_a_length(n: int) -> None:
    from fastmerge.kernels.native.transform import factors

    for back in (False, True):
        radices = factors(n, back)
        assert math.prod(radices) == n
        for radix in radices:
            assert radix in (2, 4, 8) or all(radix % d for d in range(2, math.isqrt(radix) + 1))
        large = [radix > 13 for radix in radices]
        assert large == sorted(large, reverse=not back)


@native_only
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("shape", [(86, 344), (344, 86), (102, 152), (391, 34), (236, 782), (97, 388)], ids=name)
def test_steps_by_large_primes_leave_out_only_what_they_may(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Of 17, 19, 23, 43, 59 and 97 parts of a transform, one, a few, or all that lie at both ends."""
    x = noise(shape, dtype)
    for cutoff in (0, 0.02, 0.05, 0.15, 0.3, 0.5, 0.7, 1, 1.1, 1.3):
        assert_near(ops.highpass(x, cutoff=cutoff), definition(x, {"cutoff": cutoff}), x)


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("options", [{}, {"cutoff": 1.3}, {"cutoff": 0}, {"cutoff": 9}], ids=name)
@pytest.mark.parametrize("dtypes", [(BF16,), (F32, F16), (F64,)], ids=name)
def test_pieces_and_magnitudes_are_of_the_whole(
    dtypes: tuple[torch.dtype, ...], options: dict[str, Any], backend: str
) -> None:
    """However it is cut, a merge has the same bits; magnitudes are each model's, and are found while merging too."""
    base, *models = (noise((2, 37, 70), dtypes[i % len(dtypes)], i) for i in range(3))
    limits, weights = Cutoff(**options), [0.5, 0.25]
    whole = partial(ops.highpass_merge, base, backend=backend, **options)
    expected = whole(models, weights).merged.view(-1)
    filtered, apart, at_once = (
        ops.Filtered(base, models, weights, limits, each=each, backend=backend) for each in (False, True, True)
    )
    found, each, all_each = (torch.empty_like(base).view(-1) for _ in range(3))
    at_once.write(0, all_each)
    for start, stop in ((0, 1), (1, 70), (70, 1000), (1000, 1064), (1064, 4000), (4000, len(found))):
        filtered.write(start, found[start:stop])
        apart.write(start, each[start:stop])
    assert_same_bits(found, expected, "pieces")
    assert_same_bits(each, all_each, "pieces, each model filtered")
    wide = ops.working_dtype([base, *models])
    filtered_each = ops.Filtered(base, models, weights, limits, each=True, backend=backend)
    delta = torch.empty(base.numel(), dtype=wide)
    filtered_each.write(0, delta, scale=0.7, as_delta=True)
    assert_near(
        delta,
        0.7 * whole(models, weights, as_delta=True, dtype=wide).merged.view(-1),
        torch.stack([m.to(F64) for m in models]),
        scale=2,
    )
    alone = [whole([model], as_delta=True, dtype=wide).merged for model in models]
    own = [torch.empty(base.numel(), dtype=wide) for _ in models]
    ops.Filtered.deltas(base, models, limits, own, backend=backend)
    for k, (one, delta) in enumerate(zip(own, alone, strict=True)):
        assert_same_bits(one, delta.view(-1), f"task vector {k}")
    deltas = [delta.to(F64) for delta in alone]
    magnitudes = ops.Filtered.magnitudes(base, models, limits, backend=backend)
    assert magnitudes == pytest.approx([float(delta.abs().sum()) for delta in deltas], rel=1e-6, abs=0)
    for one in (apart, at_once, filtered_each):
        assert one.each_magnitude() == pytest.approx(magnitudes, rel=1e-12, abs=0)
    with pytest.raises(InputError, match="pass each=True"):
        filtered.each_magnitude()


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("options", FILTERS, ids=name)
def test_is_linear(options: dict[str, Any], backend: str) -> None:
    """Σ λ_k G(τ_k) = G(Σ λ_k τ_k), which is why one filter serves any number of models."""
    taus, weights = [noise((45, 70), F32, k) for k in range(4)], [0.3, -0.2, 0.45, 0.15]
    together = ops.highpass(sum(w * t for w, t in zip(weights, taus, strict=True)), backend=backend, **options)  # type: ignore[arg-type]
    apart = sum(w * ops.highpass(t, backend=backend, **options) for w, t in zip(weights, taus, strict=True))
    assert isinstance(apart, Tensor)
    assert_near(together, apart, torch.stack(taus), scale=2)


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("options", [{}, {"cutoff": 1.3}, {"convention": "released", "ratio": 0.35}], ids=name)
@pytest.mark.parametrize("dtypes", [(BF16,), (F16,), (F32,), (BF16, F32), (F32, BF16, F16), (BF16, F64)], ids=name)
def test_merge_is_base_plus_filtered_sum(
    dtypes: tuple[torch.dtype, ...], options: dict[str, Any], backend: str
) -> None:
    for k in (1, 2, 3, 5):
        base, *models = (noise((2, 41, 66), dtypes[i % len(dtypes)], i) for i in range(k + 1))
        weights = [0.4 - 0.15 * i for i in range(k)]
        v = ops.delta_sum(base, models, weights)
        expected = definition(v, options)
        merge = partial(ops.highpass_merge, base, models, weights, dtype=v.dtype, backend=backend, **options)
        assert_near(merge(as_delta=True).merged, expected, v)
        assert_near(merge(as_delta=True, scale=0.7).merged, 0.7 * expected, v)
        rounding = float(base.abs().max() / v.abs().max())
        assert_near(merge().merged, base.to(F64) + expected, v, scale=1 + rounding)


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("out", [BF16, F16], ids=str)
@pytest.mark.parametrize("dtype", [BF16, F32, F64], ids=str)
def test_rounds_once(dtype: torch.dtype, out: torch.dtype, backend: str) -> None:
    """The result in the working type, rounded to nearest even."""
    base, *models = (noise((33, 65), dtype, i) for i in range(4))
    whole = ops.highpass_merge(base, models, dtype=ops.working_dtype([base]), backend=backend).merged
    expected = ops.combine(None, [whole], dtype=out, backend="reference").merged
    assert_same_bits(ops.highpass_merge(base, models, dtype=out, backend=backend).merged, expected, "rounded")


@native_only
@pytest.mark.parametrize("dtype", [BF16, F32, F64], ids=str)
def test_without_a_cutoff_it_is_combine(dtype: torch.dtype) -> None:
    """Nothing is transformed, so that the bits are those of the weighted sum."""
    base, *models = (noise((2, 33, 65), dtype, i) for i in range(4))
    arguments: tuple[Any, ...] = (base, models, [0.3, 0.5, -0.1])
    for options in ({"cutoff": 0}, {"bins": 0}, {"convention": "released", "ratio": 2}):
        for more in ({}, {"scale": 0.7}, {"as_delta": True}):
            merged = ops.highpass_merge(*arguments, **options, **more).merged  # type: ignore[arg-type]
            assert_same_bits(merged, ops.combine(*arguments, **more).merged, str(options))  # type: ignore[arg-type]
    assert_same_bits(ops.highpass(base.to(F32), cutoff=0), base.to(F32), "filter")


@pytest.mark.parametrize("backend", CPU)
def test_a_cutoff_beyond_the_corner_leaves_base(backend: str) -> None:
    base, *models = (noise((33, 65), BF16, i) for i in range(4))
    for options in ({"cutoff": 5}, {"bins": 1}, {"cutoff": 1e300}):
        assert_same_bits(ops.highpass_merge(base, models, backend=backend, **options).merged, base, str(options))  # type: ignore[arg-type]
        assert not ops.highpass(base, backend=backend, **options).any()  # type: ignore[arg-type]


@native_only
@pytest.mark.parametrize("options", [{}, {"cutoff": 1.2}, {"convention": "released", "ratio": 0.4}], ids=name)
@pytest.mark.parametrize("shape", [(3, 640, 1030), (1500, 900), (2, 64, 64)], ids=name)
def test_threads_do_not_matter(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    """One, two and five threads, and any setting of torch's, give the same bits; torch keeps its setting."""
    from fastmerge.kernels import native

    base, *models = (noise(shape, BF16, i) for i in range(3))
    before, torch_before = native.threads(), torch.get_num_threads()
    results = []
    try:
        for count, torch_count in ((1, 1), (2, 1), (5, 2), (1, 2)):
            native.set_threads(count)
            torch.set_num_threads(torch_count)
            results.append(ops.highpass_merge(base, models, dtype=F32, **options).merged)
            assert torch.get_num_threads() == torch_count
    finally:
        native.set_threads(before)
        torch.set_num_threads(torch_before)
    for result in results[1:]:
        assert_same_bits(result, results[0], "threads")


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("options", [{}, {"convention": "released"}], ids=name)
def test_a_batch_is_its_matrices(options: dict[str, Any], backend: str) -> None:
    """However a stack is cut, every matrix has the same bits."""
    base, *models = (noise((2, 3, 50, 71), BF16, i) for i in range(3))
    whole = ops.highpass_merge(base, models, backend=backend, **options).merged
    for i in range(2):
        for j in range(3):
            alone = ops.highpass_merge(base[i, j], [m[i, j] for m in models], backend=backend, **options).merged
            assert_same_bits(whole[i, j], alone, f"matrix {i}, {j}")


@pytest.mark.parametrize("backend", CPU)
def test_where_tensors_lie_does_not_matter(backend: str) -> None:
    """Transposed, strided and misaligned inputs and outputs, and an output in an input's place."""
    base, *models = (noise((640, 900), BF16, i) for i in range(3))
    expected = ops.highpass_merge(base, models, backend=backend).merged
    odd = [at_odd_address(t.view(-1)).view(t.shape) for t in (base, *models)]
    turned = [t.t().contiguous().t() for t in (base, *models)]
    strided = poisoned((640, 1800), BF16)[:, ::2]
    for first, *others, out in ((*odd, None), (*turned, strided), (base, *models, base)):
        result = ops.highpass_merge(first, others, out=out, backend=backend).merged
        assert out is None or result is out
        assert_same_bits(result, expected, "merged")
    x = noise((640, 900))
    expected = ops.highpass(x, backend=backend)
    assert_same_bits(ops.highpass(x, out=x, backend=backend), expected, "in place")


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"cutoff": 0}, {"cutoff": 9}, {"convention": "released", "ratio": 0.1}], ids=name
)
def test_nonfinite_inputs_are_counted(options: dict[str, Any], value: float, backend: str) -> None:
    base, *models = (noise((33, 65), F32, i) for i in range(4))
    assert ops.highpass_merge(base, models, backend=backend, **options).nonfinite == 0
    models[1][20, 30] = value
    result = ops.highpass_merge(base, models, backend=backend, **options)
    assert result.nonfinite == int((~result.merged.isfinite()).sum()) > 0


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 4, 4), (2, 0, 4)], ids=name)
def test_empty(shape: tuple[int, ...], backend: str) -> None:
    x = torch.empty(shape, dtype=BF16)
    assert ops.highpass(x, backend=backend).shape == shape
    merged, nonfinite = (found := ops.highpass_merge(x, [x, x], backend=backend)).merged, found.nonfinite
    assert merged.shape == shape
    assert nonfinite == 0


@given(lengths, lengths, st.sampled_from(["paper", "released"]), st.integers(0, 2600))
def test_the_plan_leaves_out_only_what_it_may(h: int, w: int, convention: str, limit: int) -> None:
    """Outside of the planned columns all is kept (where the removed part is subtracted), or nothing; none is idle."""
    from fastmerge.kernels.reference.spectrum import Bins, plan

    bins = Bins(h, w, convention, limit)
    planned = plan(bins)
    mask = distances(h, w, convention)
    mask = ((mask >= limit) if convention == "paper" else (mask <= limit)).to(F64)
    mirrored = mask[(-torch.arange(h)) % h][:, (-torch.arange(w)) % w]
    expected = ((mask + mirrored) / 2)[:, : w // 2 + 1].t()
    columns = range(planned.first, planned.first + planned.columns)
    y, reaches = torch.arange(h), torch.tensor([[[bins.reach(i)], [bins.reach(-i)]] for i in range(w // 2 + 1)])
    near = torch.stack([(2 * rows - bins.middle).abs() for rows in (y, -y % h)])
    assert (near <= reaches).to(F64).mean(1).equal(expected)
    idle = float(planned.subtract)
    inside = torch.tensor([x in columns for x in range(w // 2 + 1)])
    assert (expected[~inside] == idle).all()
    assert (expected[inside] != idle).any(1).all()
    assert planned.columns <= min((expected < 1).any(1).sum(), (expected > 0).any(1).sum())


def test_plans_of_real_shapes() -> None:
    """The paper's disc of a wide matrix and the released one of a square matrix touch few columns."""
    from fastmerge.kernels.reference.spectrum import Bins, plan

    wide = plan(Bins(5120, 13824, "paper", Cutoff(cutoff=0.3).limit(5120, 13824)))
    assert (wide.subtract, wide.first, wide.columns) == (True, 0, 768)
    square = plan(Bins(4096, 4096, "released", Cutoff(convention="released").limit(4096, 4096)))
    assert square.subtract
    assert square.columns < 50
    high = plan(Bins(4096, 4096, "paper", Cutoff(cutoff=1.3).limit(4096, 4096)))
    assert (high.subtract, high.first + high.columns) == (False, 2049)


@native_only
def test_neither_spectrum_nor_sum_is_stored(tmp_path: Path) -> None:
    """Beyond inputs and output, a merge takes a fraction of a float32 matrix."""
    code = """
import resource, torch
from fastmerge import ops
from fastmerge.kernels import native
native.set_threads(1)
h, w = 2048, 11008
base, a, b, out = (torch.full((h, w), v, dtype=torch.bfloat16) for v in (0.0, 1.0, 2.0, 3.0))
ops.highpass_merge(base[:9], [a[:9], b[:9]], out=out[:9])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ops.highpass_merge(base, [a, b], out=out)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 / (4 * h * w))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.5


X = noise((4, 4))


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: ops.highpass(X[0]), r"x has shape \[4\], expected matrices"),
        (lambda: ops.highpass(X, cutoff=-0.1), "cutoff must be a number from 0 up, not -0.1"),
        (lambda: ops.highpass(X, cutoff=float("nan")), "cutoff must be a number"),
        (lambda: ops.highpass(X, bins=1.5), "bins must be a number from 0 to 1, not 1.5"),
        (lambda: ops.highpass(X, cutoff=0.3, bins=0.3), "give one of them"),
        (lambda: ops.highpass(X, ratio=0.7), "ratio belongs to convention='released', not to 'paper'"),
        (lambda: ops.highpass(X, convention="released", cutoff=0.3), "cutoff belongs to convention='paper'"),
        (lambda: ops.highpass(X, convention="relased"), "did you mean 'released'"),  # type: ignore[arg-type]
        (lambda: ops.highpass(X, out=X.double()), "out must be torch.float32"),
        (lambda: ops.highpass(X.int()), "x is torch.int32"),
        (lambda: ops.highpass_merge(X, [X[:2]]), r"models\[0\] has shape"),
        (lambda: ops.highpass_merge(X, []), "1 to 64 models"),
        (lambda: ops.highpass_merge(X, [X], [1.0, 2.0]), "1 models need as many weights, there are 2"),
        (lambda: ops.highpass_merge(X[0], [X[0]]), "view a vector as"),
    ],
)
def test_bad_arguments(call: Callable[[], object], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        call()


def test_every_problem_at_once() -> None:
    with pytest.raises(InputError) as caught:
        Cutoff(cutoff=-1, bins=2, ratio=-3)
    assert len(caught.value.problems) == 5
