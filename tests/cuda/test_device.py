"""The ops on a GPU: to the bit the reference's, in one launch or many; more elements than 32 bits can count."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
from batches import check_batches
from combined import check_low_ranks, check_overflows, check_selections
from fastmerge.kernels import cuda
from fastmerge.kernels.cuda import brackets
from magnitudes import CUT, PAIRS, assert_same_drops, check_drops
from misfits import check_misfits
from offsets import check_offsets
from ops.test_conformance import compare
from selections import HARD, ranks_of
from tensors import BF16, F16, F32, F64, make

from fastmerge import ops

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")

OPS = [op for op in ops.OPS if hasattr(cuda, op) and not ops.OPS[op].tolerance]
# Each form is compiled, which takes seconds; sizes cost nothing.
FORMS = [
    ((BF16,), 1),
    ((BF16,), 3),
    ((BF16,), 8),
    ((BF16,), 9),
    ((F16,), 2),
    ((F32,), 3),
    ((F32,), 9),
    ((F64,), 3),
    ((BF16, F32), 3),
    ((F64, F16), 2),
]
SIZES = (0, 1, 7, 1023, 1025, 65_536, 200_003)


@pytest.mark.parametrize("form", range(len(FORMS)))
@pytest.mark.parametrize("op", OPS)
def test_op_equals_the_reference(op: str, form: int) -> None:
    dtypes, k = FORMS[form]
    for n in SIZES:
        inputs = [
            make(n, dtypes[i % len(dtypes)], seed=97 * i + n, special=n > 8, misaligned=form == 1 and n % 2 == 1)
            for i in range(k + 1)
        ]
        compare(op, "cuda", inputs, dtypes[-1], f"K={k} n={n}")


@pytest.mark.parametrize("op", [op for op in OPS if hasattr(cuda, f"{op}_many")])
def test_many_tensors_in_one_launch(op: str) -> None:
    assert check_batches(op, "cuda") > 0


@pytest.mark.parametrize("op", ["gather", "scatter", "scatter_add"])
def test_what_does_not_fit_changes_nothing(op: str) -> None:
    assert check_misfits(op, cuda, "cuda") > 0


@pytest.mark.parametrize("check", [check_selections, check_overflows, check_low_ranks])
def test_what_must_be_told_apart(check: Callable[[str, str], int]) -> None:
    assert check("cuda", "cuda") > 0


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_drops_by_rank(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """Of single elements, and in rows of all lengths."""
    assert check_drops(dtypes, [(66_003, 1), *CUT], "cuda") > 0


@pytest.mark.parametrize("name", HARD)
def test_drops_by_rank_of_hard_tensors(name: str) -> None:
    """Where more wait for their ranks than there is room for at a time."""
    assert_same_drops(*HARD[name](2 * 6007), 6007, device="cuda")


LARGE = 2**22 + 3  # elements, of which a sample is taken first
SAMPLED = {
    **{name: make_pair for name, make_pair in HARD.items() if "64" not in name and "−0" not in name},
    "of every kind": lambda n: (make(n, F16, 1), make(n, F32, 2)),
    "fine-tuned": lambda n: (make(n, BF16, 1, special=False), (make(n, BF16, 1, special=False) * 1.01).to(BF16)),
    "rising": lambda n: (torch.zeros(n), torch.linspace(0, 1, n)),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_cuts_of_sampled_tensors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact, each time, and found where the sample says; three models at once, aligned and not."""
    base, model = SAMPLED[name](LARGE)
    models, ranks = [model, model.roll(7), -model], [ranks_of(LARGE)] * 3
    found, cuts = [], brackets.cuts
    monkeypatch.setattr(brackets, "cuts", lambda *given: found.append(cuts(*given)) or found[-1])
    expected = ops.kth_magnitude(base, models, ranks)
    for first in (0, 1):
        own = [torch.cat([t[:first], t]).cuda()[first:] for t in (base, *models)]
        for _ in range(3):
            actual = ops.kth_magnitude(own[0], own[1:], ranks, backend="cuda")
            assert str(actual) == str(expected)
    assert len(found) == 6
    assert all(all(own) for own in found)


ROWS = (3_000_001, 853)  # columns: one row in parts, and short ones


@pytest.mark.parametrize("op", ["elect", "moments", "kept_sums", "inner_products", "row_gram", "row_divergence"])
def test_a_result_is_the_same_each_time(op: str) -> None:
    """Sums too, to the bit: nothing depends on which program ends first."""
    base, *models = (make(3_000_001, BF16, seed=i, special=False).cuda() for i in range(4))
    call = {
        "elect": lambda: ops.elect(base, models, backend="cuda")[2:],
        "moments": lambda: ops.moments(base, models, backend="cuda"),
        "kept_sums": lambda: ops.kept_sums(base, models, ops.Kept(drop=[ops.Drop(1, 1 << 31)] * 3), backend="cuda"),
        "inner_products": lambda: ops.inner_products(base, models, backend="cuda"),
        "row_gram": lambda: [ops.row_gram(base, models, c, backend="cuda") for c in ROWS],
        "row_divergence": lambda: [ops.row_divergence(base, models[0], c, backend="cuda") for c in ROWS],
    }[op]
    first = call()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(call(), first, strict=True))


@pytest.mark.slow
def test_more_than_32_bits_of_elements() -> None:
    """The last elements of 2^31 + 3 are elected and ranked like any other."""
    n = 2**31 + 3
    if torch.cuda.mem_get_info()[0] < 11 * n:
        pytest.skip("needs 24 GB of GPU memory")
    base = torch.zeros(n, dtype=torch.bfloat16, device="cuda")
    models = [torch.full_like(base, x) for x in (1.0, -0.5)]
    elected = ops.elect(base, models, backend="cuda")
    assert elected.unified[-5:].eq(1).all()
    assert elected.magnitude.tolist() == [n, n / 2]
    del elected
    assert ops.kth_magnitude(base, models, [[n - 2]] * 2, backend="cuda") == [[(1.0, n - 2)], [(0.5, n - 2)]]


@pytest.mark.slow
def test_more_than_32_bits_of_offsets() -> None:
    """Where an element is decides whether it is kept, and what it is weighted with, beyond 2^31 as before."""
    n = 2**31 + ops.BLOCK + 3
    if torch.cuda.mem_get_info()[0] < 10 * n:
        pytest.skip("needs 22 GB of GPU memory")
    assert check_offsets(n, 2**31, "cuda") > 0
