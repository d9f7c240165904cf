"""What elements score in PCB-Merging, against the paper's formula in a wider type, and what shares make of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensors import F32, F64, assert_same_bits

from fastmerge import dispatch, ops

CPU = [b for b in ("reference", "native") if not isinstance(dispatch.load(b), str)]
LEAST, MOST = 0.125, 4.0


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("k", [1, 3, 64])
def test_scores_are_the_papers(k: int, dtype: torch.dtype, backend: str) -> None:
    """To a few units of the last place, however small or large the sum of task vectors is."""
    n = 20_000
    generator = torch.Generator().manual_seed(k)
    tau = (8 * torch.rand(n, generator=generator, dtype=F64)).to(dtype)
    others = 10 ** (22 * torch.rand(k - 1, n, generator=generator, dtype=F64) - 20)
    models = [tau, *others.to(dtype)]
    found = ops.compete(torch.zeros_like(tau), models, 0, least=LEAST, most=MOST, backend=backend)
    wide = [np.longdouble(model.numpy()) for model in models]
    size = wide[0].clip(LEAST, MOST)
    expected = np.exp(k * ((size - LEAST) / (MOST - LEAST)) ** 2) * np.tanh(size * sum(wide))
    # n² is right to some units of the last place, of which its exponential makes K times as many.
    np.testing.assert_allclose(np.longdouble(found.numpy()), expected, rtol=(8 + 4 * k) * torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_hyperbolic_tangent_of_little_and_of_much(dtype: torch.dtype, backend: str) -> None:
    """Where all magnitudes are clamped to one, scores are the tangents."""
    x = torch.logspace(-30, 3, 5000, dtype=F64).to(dtype)
    one = torch.ones_like(x)
    found = ops.compete(0 * x, [one, x - one], 0, least=1.0, most=1.0, backend=backend)
    total = np.longdouble((one + (x - one)).numpy())
    np.testing.assert_allclose(np.longdouble(found.numpy()), np.tanh(total), rtol=4 * torch.finfo(dtype).eps)
    assert found.max() == 1


@pytest.mark.parametrize("backend", CPU)
def test_what_is_not_positive_scores_nothing(backend: str) -> None:
    tau = torch.tensor([1.0, -1, 0, -0.0, torch.nan, 1, torch.inf, -torch.inf])
    other = torch.tensor([-2.0, 2, 1, 1, 1, torch.nan, -torch.inf, 1])
    scores = ops.compete(torch.zeros(8), [tau, other], 0, least=0.5, most=2.0, backend=backend)
    assert_same_bits(scores[:7], torch.zeros(7), "scores")
    assert scores[7] == pytest.approx(np.exp(2))  # of the greatest magnitude, where tanh is 1


@pytest.mark.parametrize("backend", CPU)
def test_shares_of_competitors(backend: str) -> None:
    """The higher score has the larger share, up to the full one; without any, or against the others, base stays."""
    base = torch.tensor([1.0, 1, 1, 1])
    models = [torch.tensor([3.0, 3, 0, 1]), torch.tensor([5.0, 0, 3, 1])]
    bounds = [ops.Bounds(1.0, 1.0, 0.25, 0.5), ops.Bounds(1.0, 1.0, 0.25, 1.0)]
    scores = torch.stack([ops.compete(base, models, k, least=1.0, most=1.0, backend=backend) for k in range(2)])
    merged = ops.balance(base, models, bounds, backend=backend, scale=2).merged
    assert scores[0, 0] > 0.99
    assert merged[0] == 3  # 1 and 1 of any share, and twice that
    assert merged.tolist()[1:] == [3, 3, 1]
    nothing = [ops.Bounds(1.0, 1.0, 1.0, 1.0)] * 2
    assert_same_bits(ops.balance(base, models, nothing, backend=backend).merged, base, "no shares")


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_counted(bad: float, backend: str) -> None:
    """In whatever model, though no share may show it."""
    base, model, other = torch.zeros(70), torch.ones(70), torch.ones(70)
    other[[3, 40, 69]] = bad
    counted = ops.balance(base, [model, other], [ops.Bounds(0.0, 1.0, 5.0, 9.0)] * 2, backend=backend)
    assert counted.nonfinite == 3
