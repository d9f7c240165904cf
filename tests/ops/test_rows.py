"""What is found of every row: divergences wherever its weights lie, and products, against wider types."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tensors import BF16, F32, F64, make
from torch import Tensor

from fastmerge import dispatch, ops
from fastmerge.errors import InputError

CPU = [b for b in ("reference", "native") if not isinstance(dispatch.load(b), str)]
COLUMNS = 1009
NOISE = 0.05 * make(8 * COLUMNS, F64, 1, special=False)
ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "near zero": lambda x: 0.1 * x,
    "some large": lambda x: torch.where(x > 0.1, 40 * x, x),
    "far above": lambda x: 1000 + x,
    "far below": lambda x: -1000 + x,
    "wide apart": lambda x: 1e4 * x,
    "all but impossible": lambda x: torch.where(x > 0.1, x, -torch.inf),
}


@pytest.mark.parametrize("columns", [COLUMNS, 8 * COLUMNS])
@pytest.mark.parametrize("change", [1e-3, 0.03, 1.0])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("backend", CPU)
def test_divergence_of_distributions(backend: str, rows: str, change: float, columns: int) -> None:
    base = ROWS[rows](NOISE).float()
    model = base + change * make(base.numel(), F32, 2, special=False)
    found = ops.row_divergence(base, model, columns, backend=backend)
    p, q = (_softmax(x, columns) + np.longdouble(1e-8) for x in (model, base))
    size = (p * np.abs(np.log(p / q))).sum(1)
    expected = (p * np.log(p / q) - (p - q)).sum(1)
    assert found.dtype == F64
    assert (np.abs(np.longdouble(found.numpy()) - expected) <= 1e-14 * (1 + size)).all()
    if change == 1e-3:  # what hardly changes is as right as what changes much
        np.testing.assert_allclose(np.longdouble(found.numpy()), expected, rtol=1e-10, atol=1e-25)


def _softmax(x: Tensor, columns: int) -> np.ndarray[tuple[int, ...], np.dtype[np.longdouble]]:
    wide = np.longdouble(x.view(-1, columns).double().numpy())
    powers = np.exp(wide - wide.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("backend", CPU)
def test_what_is_no_distribution_has_no_divergence(backend: str, bad: float) -> None:
    base, model = NOISE.float().view(8, -1), (1.01 * NOISE).float().view(8, -1)
    base[1, 3] = model[4, 1000] = bad
    found = ops.row_divergence(base, model, COLUMNS, backend=backend)
    assert found.isnan().tolist() == [False, True, False, False, True, False, False, False]
    base[1, 3], model[4] = 0, -torch.inf
    found = ops.row_divergence(base, model, COLUMNS, backend=backend)
    assert found.isnan().tolist() == [False, False, False, False, True, False, False, False]
    base[:5], model[4] = -torch.inf, 0  # more than a part of a long row
    assert ops.row_divergence(base, base + 0.1, base.numel(), backend=backend).isfinite().all()


@pytest.mark.parametrize("columns", [COLUMNS, 8 * COLUMNS])
@pytest.mark.parametrize("backend", CPU)
def test_products_of_rows_are_those_of_each(backend: str, columns: int) -> None:
    base, *models = (make(8 * COLUMNS, BF16, seed, special=False) for seed in range(4))
    found = ops.row_gram(base, models, columns, backend=backend)
    for i, (own, *others) in enumerate(zip(*(x.split(columns) for x in (base, *models)), strict=True)):
        torch.testing.assert_close(found[:, :, i], ops.gram(own, others), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: ops.row_gram(NOISE, [NOISE], 5), "8072 elements are not rows of 5"),
        (lambda: ops.row_divergence(NOISE, NOISE, 0), "not rows of 0"),
        (lambda: ops.row_divergence(NOISE, NOISE, 8, epsilon=0), "epsilon must be above 0"),
        (lambda: ops.variance(NOISE, [NOISE], out=NOISE.float()), "float64, the working type"),
        (lambda: ops.compete(NOISE, [NOISE], 1, least=0, most=1), "own is 1, the models are 0 to 0"),
        (lambda: ops.compete(NOISE, [NOISE], 0, least=2, most=1), "0 ≤ least ≤ most"),
        (lambda: ops.balance(NOISE, [NOISE] * 2, [ops.Bounds(0, 1)]), "2 models need as many bounds, there are 1"),
        (lambda: ops.balance(NOISE, [NOISE], [ops.Bounds(0, torch.inf)]), "must be finite"),
    ],
)
def test_bad_arguments(call: Callable[[], object], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        call()
