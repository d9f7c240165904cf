"""What holds for any input: the reference against formulas worked out in exact arithmetic, and laws of the ops."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensors import BF16, DTYPES, F16, F32, F64, assert_same_bits, grid, make
from torch import Tensor

from fastmerge import dispatch, ops

CPU = [b for b in ("reference", "native") if not isinstance(dispatch.load(b), str)]
FRACTION_BITS = {BF16: 7, F16: 10}
LEAST_EXPONENT = {BF16: -126, F16: -14}

backends = st.sampled_from(CPU)
small = st.integers(-4096, 4096).map(lambda i: i / 1024)
sizes = st.integers(0, 300)


def rows(values: list[list[float]]) -> list[Tensor]:
    return [torch.tensor(v, dtype=F32) for v in values]


@st.composite
def families(draw: st.DrawFn) -> list[list[float]]:
    """base and one to four models of equal length, in numbers whose differences float32 holds exactly."""
    n = draw(st.integers(1, 12))
    row = st.lists(small, min_size=n, max_size=n)
    return draw(st.lists(row, min_size=2, max_size=5))


@given(families(), backends)
def test_elect_is_the_papers_formula(values: list[list[float]], backend: str) -> None:
    """Element by element in exact arithmetic: sign of the sum, largest agreeing magnitude, masks and both sums."""
    base, *models = values
    k = len(models)
    elected = ops.elect(rows(values)[0], rows(values)[1:], backend=backend)
    magnitude, kept = [Fraction(0)] * k, [Fraction(0)] * k
    masks = torch.stack([ops.unpack_bits(m, (len(base),)) for m in elected.masks])
    for i, b in enumerate(base):
        taus = [Fraction(m[i]) - Fraction(b) for m in models]
        sign = 1 if sum(taus) > 0 else -1
        agreeing = [t for t in taus if t * sign > 0]
        unified = max((abs(t) for t in agreeing), default=Fraction(0))
        assert Fraction(float(elected.unified[i])) == sign * unified
        for j, tau in enumerate(taus):
            assert bool(masks[j, i]) == (tau * sign > 0)
            magnitude[j] += abs(tau)
            kept[j] += unified if tau * sign > 0 else 0
    for j in range(k):
        assert math.isclose(float(elected.magnitude[j]), float(magnitude[j]), rel_tol=1e-12)
        assert math.isclose(float(elected.kept[j]), float(kept[j]), rel_tol=1e-12)


@given(families(), st.sampled_from([0.0, 0.25, 1.0, 2.0]), backends)
def test_tall_masks_are_the_papers_formula(values: list[list[float]], tall: float, backend: str) -> None:
    """|τ_k| ≥ λ · |τ_m − τ_k| in exact arithmetic, for the sum of the task vectors; |τ_m| summed where masked."""
    base, *models = rows(values)
    merged = ops.combine(base, models, as_delta=True, backend=backend).merged
    masked = ops.mask_against(base, models, merged, tall=[tall] * len(models), backend=backend)
    for j, model in enumerate(values[1:]):
        taus = [Fraction(x) - Fraction(b) for x, b in zip(model, values[0], strict=True)]
        sums = [Fraction(x) for x in merged.tolist()]
        mask = [abs(t) >= Fraction(tall) * abs(m - t) for t, m in zip(taus, sums, strict=True)]
        assert ops.unpack_bits(masked.masks[j], (len(taus),)).tolist() == mask
        assert float(masked.kept[j]) == float(sum(abs(m) for m, on in zip(sums, mask, strict=True) if on))


@given(families(), st.lists(st.floats(-2, 2, width=16), min_size=5, max_size=5), backends)
def test_combine_is_the_weighted_sum(values: list[list[float]], weights: list[float], backend: str) -> None:
    base, *models = values
    weights = weights[: len(models)]
    merged = ops.combine(rows(values)[0], rows(values)[1:], weights, backend=backend).merged
    for i, b in enumerate(base):
        exact = b + sum(w * (m[i] - b) for w, m in zip(weights, models, strict=True))
        assert float(merged[i]) == pytest.approx(exact, abs=1e-5)


@given(families(), backends)
def test_moments_and_inner_products_are_exact_sums(values: list[list[float]], backend: str) -> None:
    base, *models = values
    m = ops.moments(rows(values)[0], rows(values)[1:], backend=backend)
    p = ops.inner_products(rows(values)[0], rows(values)[1:], backend=backend)
    for j, model in enumerate(models):
        taus = [x - b for x, b in zip(model, base, strict=True)]
        close = {"rel_tol": 1e-12, "abs_tol": 1e-12}
        assert math.isclose(float(m.magnitude[j]), math.fsum(map(abs, taus)), **close)
        assert math.isclose(float(m.total[j]), math.fsum(taus), **close)
        assert math.isclose(float(m.energy[j]), math.fsum(t * t for t in taus), **close)
        assert float(m.peak[j]) == max(map(abs, taus))
        assert math.isclose(float(p.dots[j]), math.fsum(x * y for x, y in zip(base, model, strict=True)), **close)
        assert math.isclose(float(p.norms[j]), math.fsum(x * x for x in model), **close)


def nearest_even(x: float, dtype: torch.dtype) -> Fraction:
    """x rounded to the nearest 16-bit value in exact arithmetic, to even between two."""
    exact = Fraction(x)
    if exact == 0:
        return exact
    exponent = max(math.frexp(x)[1] - 1, LEAST_EXPONENT[dtype])
    place = Fraction(2) ** (exponent - FRACTION_BITS[dtype])
    return round(exact / place) * place


def halfway(units: int, exponent: int, beside: float) -> float:
    return (units + 0.5) * 2.0**exponent + beside


@given(
    st.one_of(
        st.floats(-60000, 60000),
        st.builds(halfway, st.integers(-600, 600), st.integers(-28, 6), st.floats(-1e-30, 1e-30)),
    ),
    st.sampled_from([BF16, F16]),
    backends,
)
def test_rounding_is_to_nearest_even_and_only_once(x: float, dtype: torch.dtype, backend: str) -> None:
    """float64 → 16 bits, also midway between two values and a hair beside it."""
    merged = ops.combine(None, [torch.tensor([x], dtype=F64)], dtype=dtype, backend=backend).merged
    assert Fraction(float(merged)) == nearest_even(x, dtype)


@given(sizes, st.sampled_from(DTYPES), st.integers(1, 9), st.integers(0, 1 << 20), backends)
def test_identical_models(n: int, dtype: torch.dtype, k: int, seed: int, backend: str) -> None:
    """K copies of one model elect that model's own task vector, with every non-zero element in every mask."""
    base, model = grid(n, dtype, seed), grid(n, dtype, seed + 1)
    elected = ops.elect(base, [model] * k, backend=backend)
    tau = model - base
    assert_same_bits(elected.unified, tau + 0.0, "unified")
    for row in elected.masks:
        assert ops.unpack_bits(row, (n,)).equal(tau != 0)
    assert elected.magnitude.equal(elected.kept)


@given(sizes, st.permutations(range(4)), st.integers(0, 1 << 20), backends)
def test_order_of_models_does_not_matter(n: int, order: list[int], seed: int, backend: str) -> None:
    """Where sums are exact, permuted models give the same unified vector, and permuted masks and sums."""
    base, models = grid(n, BF16, seed), [grid(n, BF16, seed + 1 + i) for i in range(4)]
    a = ops.elect(base, models, backend=backend)
    b = ops.elect(base, [models[i] for i in order], backend=backend)
    assert_same_bits(b.unified, a.unified, "unified")
    assert b.masks.equal(a.masks[order])
    assert b.magnitude.equal(a.magnitude[order])
    merged = [ops.combine(base, m, backend=backend).merged for m in (models, [models[i] for i in order])]
    assert_same_bits(*merged, "combine")


@given(st.integers(0, 2000), st.lists(st.integers(0, 250), max_size=4), st.sampled_from(DTYPES), backends)
def test_any_chunking(n: int, cuts: list[int], dtype: torch.dtype, backend: str) -> None:
    """Cut anywhere at whole bytes of the masks, elementwise results are the whole tensor's."""
    base, models = make(n, dtype, n), [make(n, dtype, n + i) for i in range(1, 4)]
    whole, merged = ops.elect(base, models, backend=backend), ops.combine(base, models, backend=backend).merged
    edges = [0, *sorted(min(8 * c, n // 8 * 8) for c in cuts), n]
    pieces = []
    for start, stop in pairwise(edges):
        part = base[start:stop], [m[start:stop] for m in models]
        pieces.append((ops.elect(*part, backend=backend), ops.combine(*part, backend=backend).merged))
    assert_same_bits(torch.cat([e.unified for e, _ in pieces]), whole.unified, "unified")
    assert torch.cat([e.masks for e, _ in pieces], 1).equal(whole.masks)
    assert_same_bits(torch.cat([m for _, m in pieces]), merged, "combine")


@given(st.lists(st.booleans(), max_size=200), backends)
def test_pack_bits_round_trip(values: list[bool], backend: str) -> None:
    """Bit i of byte j is element 8j + i; unpacking gives the mask back."""
    mask = torch.tensor(values, dtype=torch.bool)
    packed = ops.pack_bits(mask, backend=backend)
    expected = int.from_bytes(bytes(packed.tolist()), "little")
    assert expected == sum(1 << i for i, v in enumerate(values) if v)
    assert ops.unpack_bits(packed, (len(values),), backend=backend).equal(mask)


@given(st.integers(0, 1 << 20), st.sampled_from([BF16, F32]), st.integers(1, 14), backends)
def test_sums_do_not_depend_on_how_they_are_added(seed: int, dtype: torch.dtype, k: int, backend: str) -> None:
    """Ordinary weights (summed quickly) and weights over 200 binary orders (where that would round) alike."""
    n = 4099
    for spread in (0, 60):
        exponent = torch.randint(-spread, spread + 1, (n,), generator=torch.Generator().manual_seed(seed)).double()
        base, *models = (
            (make(n, dtype, seed + i, special=False).double() * 2 ** (exponent / 4)).to(dtype) for i in range(k + 1)
        )
        elected = ops.elect(base, models, backend=backend)
        for i, model in enumerate(models):
            exact = math.fsum((model.float() - base.float()).abs().double().tolist())
            assert math.isclose(float(elected.magnitude[i]), exact, rel_tol=1e-13)
