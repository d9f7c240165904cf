"""The public functions of fastmerge.ops: what they take, what they write into, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensors import BF16, F32, F64, assert_same_bits, grid, make, poisoned
from torch import Tensor

from fastmerge import dispatch, ops
from fastmerge.errors import BackendError, InputError

SHAPES = [(), (0,), (1,), (7, 0, 3), (5, 9), (2, 3, 4, 5)]
BITS = torch.zeros(1, dtype=torch.uint8)


def family(shape: tuple[int, ...], dtype: torch.dtype = BF16, k: int = 3) -> tuple[Tensor, list[Tensor]]:
    n = int(torch.Size(shape).numel())
    return make(n, dtype, 0, special=False).view(shape), [
        make(n, dtype, i + 1, special=False).view(shape) for i in range(k)
    ]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape(shape: tuple[int, ...]) -> None:
    """Results have base's shape, and its elements those of the flat tensors."""
    base, models = family(shape)
    flat_base, flat_models = base.view(-1), [m.view(-1) for m in models]
    elected, flat = ops.elect(base, models), ops.elect(flat_base, flat_models)
    assert elected.unified.shape == base.shape
    assert elected.masks.shape == (3, ops.packed_bytes(base.numel()))
    assert_same_bits(elected.unified.view(-1), flat.unified, "elect")
    task = ops.modulate(base, elected.unified, elected.masks[1], 1.2)
    assert task.shape == base.shape
    assert_same_bits(task.view(-1), ops.modulate(flat_base, flat.unified, flat.masks[1], 1.2), "modulate")
    merged = ops.combine(base, models, [0.1, 0.2, 0.3]).merged
    assert merged.shape == base.shape
    assert_same_bits(merged.view(-1), ops.combine(flat_base, flat_models, [0.1, 0.2, 0.3]).merged, "combine")
    assert ops.delta_sum(base, models).shape == base.shape
    assert ops.unpack_bits(ops.pack_bits(base > 0), shape).equal(base > 0)


def test_non_contiguous_tensors() -> None:
    """Transposed, strided and expanded inputs and outputs give what their contiguous copies give."""
    rows = [make(6 * 8, BF16, i, special=False).view(6, 8) for i in range(5)]
    base, models = (
        rows[0].t(),
        [rows[1].t(), rows[2].t(), make(16, BF16, 9, special=False)[::2].unsqueeze(1).expand(8, 6)],
    )
    solid_base, solid_models = base.contiguous(), [m.contiguous() for m in models]
    expected = ops.elect(solid_base, solid_models)
    unified, masks = poisoned((6, 8), BF16).t(), poisoned((3, 12), torch.uint8)[:, ::2]
    elected = ops.elect(base, models, out=(unified, masks))
    assert elected.unified is unified
    assert_same_bits(unified, expected.unified, "unified")
    assert_same_bits(masks, expected.masks, "masks")
    out = poisoned((8, 12), BF16)[:, ::2]
    assert ops.modulate(base, unified, masks[0], 0.9, out=out) is out
    assert_same_bits(out, ops.modulate(solid_base, expected.unified, expected.masks[0], 0.9), "modulate")
    assert ops.combine(base, models, out=out).merged is out
    assert_same_bits(out, ops.combine(solid_base, solid_models).merged, "combine")
    assert ops.inner_products(base, models).dots.equal(ops.inner_products(solid_base, solid_models).dots)
    row, strided = make(40, BF16, 3, special=False), make(80, BF16, 4, special=False)[::2]
    assert_same_bits(
        ops.combine(strided, [row]).merged, ops.combine(strided.contiguous(), [row]).merged, "strided vector"
    )


def test_an_output_may_replace_an_input() -> None:
    """elect and combine may write over base: every element is read before it is written."""
    base, models = family((70_001,))
    elected, merged = ops.elect(base, models), ops.combine(base, models, [0.3, 0.3, 0.3]).merged
    over = base.clone()
    again = ops.elect(over, models, out=(over, torch.empty_like(elected.masks)))
    assert_same_bits(over, elected.unified, "elect over base")
    assert_same_bits(again.masks, elected.masks, "masks of elect over base")
    assert again.magnitude.equal(elected.magnitude)
    over = base.clone()
    ops.combine(over, models, [0.3, 0.3, 0.3], out=over)
    assert_same_bits(over, merged, "combine over base")


OVER: dict[str, Callable[[Tensor, Tensor, Tensor], object]] = {  # into an output, with its memory in the first of two
    "elect": lambda x, y, out: ops.elect(y, [y, x], out=(out, BITS.new_empty(2, 9))),
    "modulate": lambda x, y, out: ops.modulate(x, y, BITS.expand(9), 1.0, out=out),
    "modulation": lambda x, y, out: ops.modulation([(x, y, BITS.expand(9), 1.0, out)]),
    "low_rank": lambda x, y, out: ops.low_rank(x, torch.ones(8, 1), torch.ones(1, 9), out=out),
    "combine": lambda x, y, out: ops.combine(None, [y, x], out=out),
    "blend": lambda x, y, out: ops.blend(x, [y], torch.ones(1, 8), inner=9, out=out),
    "delta_sum": lambda x, y, out: ops.delta_sum(x, [y], out=out),
    "highpass": lambda x, y, out: ops.highpass(x, out=out),
    "highpass_merge": lambda x, y, out: ops.highpass_merge(y, [x], out=out),
}


@pytest.mark.parametrize("op", OVER)
def test_an_output_shares_no_other_memory(op: str) -> None:
    """Before or behind an input, or of other elements in its place, an output is refused and nothing written; where
    it is not contiguous, it is written last."""
    memory, other = make(81, F32, 0, special=False), make(72, F32, 1, special=False).view(8, 9)
    x, before = memory[1:73].view(8, 9), memory.clone()
    for out in (memory[:72], memory[9:], memory[1:].view(BF16)[:72]):
        with pytest.raises(InputError, match=r"(out|unified) shares memory with (x|base|unified|models.[01].), but"):
            OVER[op](x, other, out.view(8, 9))
    assert memory.equal(before)
    if op != "modulation":
        apart, strided = torch.empty(8, 9), memory[:72].view(9, 8).t()
        OVER[op](x, other, apart)
        OVER[op](x, other, strided)
        assert_same_bits(strided, apart, op)


def test_output_dtype() -> None:
    base, models = family((33,))
    assert ops.elect(base, models).unified.dtype == BF16
    assert ops.elect(base, models, dtype=F32).unified.dtype == F32
    assert ops.combine(None, models, dtype=F64).merged.dtype == F64
    assert ops.delta_sum(base, models).dtype == F32
    assert ops.delta_sum(base.double(), models).dtype == F64


def test_sums_accumulate_over_chunks() -> None:
    """A tensor cut at a multiple of the block gives the whole one's sums, to the bit."""
    n, cut = 200_003, 2 * ops.BLOCK
    base, models = family((n,))
    whole, chunked = ops.elect(base, models), torch.zeros(2, 3, dtype=F64)
    moments, products = ops.moments(base, models), ops.inner_products(base, models)
    many, bad = torch.zeros(4, 3, dtype=F64), torch.zeros(3, dtype=torch.int64)
    inner = torch.zeros(7, dtype=F64)
    for part in (slice(0, cut), slice(cut, n)):
        b, m = base[part], [x[part] for x in models]
        ops.elect(b, m, sums=chunked)
        ops.moments(b, m, sums=many, nonfinite=bad)
        ops.inner_products(b, m, sums=inner)
    assert chunked.equal(torch.stack([whole.magnitude, whole.kept]))
    assert many.equal(torch.stack([moments.magnitude, moments.total, moments.energy, moments.peak]))
    assert inner.equal(torch.cat([products.dots, products.norms, products.gradient_norm[None]]))


def test_gradients_are_ignored() -> None:
    base, models = family((65,), F32)
    base.requires_grad_(True)
    assert not ops.elect(base, models).unified.requires_grad
    assert not ops.combine(base, models).merged.requires_grad


def test_memory_mapped_tensors_are_read_in_place(tmp_path: Path) -> None:
    """Tensors over a read-only file are neither copied nor written."""
    if isinstance(dispatch.load("native"), str):
        pytest.skip("the reference computes on copies widened to float32")
    import resource

    n = 48 << 20
    file = tmp_path / "weights"
    file.write_bytes(bytes(2 * n + 1))
    before = file.stat().st_mtime_ns
    mapped = torch.from_file(str(file), shared=False, size=2 * n, dtype=torch.uint8)[: 2 * n].view(BF16)
    ops.inner_products(mapped, [mapped])  # touches all pages: from here on only copies would add memory
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ops.inner_products(mapped, [mapped, mapped])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) << 10
    assert grown < n, f"{grown >> 20} MiB were copied"
    assert file.stat().st_mtime_ns == before


BASE, MODELS = family((4,))


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: ops.elect(BASE, []), "1 to 64 models"),
        (lambda: ops.elect(BASE, [BASE] * 65), "1 to 64 models"),
        (lambda: ops.elect(BASE, [BASE, BASE[:3]]), r"models\[1\] has shape \[3\], base has \[4\]"),
        (lambda: ops.elect(BASE, [BASE.int()]), r"models\[0\]"),
        (lambda: ops.elect(BASE, MODELS, out=(BASE, BITS)), r"masks must be torch.uint8 \[3, 1\]"),
        (lambda: ops.elect(BASE, MODELS, sums=torch.zeros(2, 3)), "sums must be torch.float64"),
        (lambda: ops.elect(BASE, MODELS, sums=torch.zeros(3, 2, dtype=F64).t()), "contiguous"),
        (lambda: ops.elect(BASE.to("meta"), MODELS), r"models\[0\] is on cpu, base on meta"),
        (lambda: ops.modulate(BASE, BASE, BITS[:0], 1.0), "mask must be"),
        (lambda: ops.modulate(BASE, BASE[:2], BITS, 1.0), "unified has shape"),
        (lambda: ops.low_rank(BASE, torch.ones(2, 1), torch.ones(2, 2)), r"must be \[R, r\] and \[r, C\]"),
        (lambda: ops.low_rank(BASE, torch.ones(2, 0), torch.ones(0, 2)), "r ≥ 1"),
        (
            lambda: ops.low_rank(BASE, torch.ones(2, 1), torch.ones(1, 2), first=1),
            "4 elements from 1 on, the product 4",
        ),
        (lambda: ops.low_rank(BASE, torch.ones(2, 1), torch.ones(1, 2), out=BASE[:2]), "out has shape"),
        (lambda: ops.low_rank(BASE, torch.ones(2, 1).int(), torch.ones(1, 2)), "up is torch.int32"),
        (lambda: ops.mask_against(BASE, MODELS, BASE[:2]), "merged has shape"),
        (
            lambda: ops.mask_against(BASE, MODELS, BASE, tall=[1.0]),
            "3 models need as many numbers in tall, there are 1",
        ),
        (lambda: ops.combine(BASE, MODELS, [1.0]), "3 models need as many weights, there are 1"),
        (lambda: ops.combine(BASE, MODELS[:2], [1.0, -1.0], normalize=True), "sum to zero"),
        (lambda: ops.combine(BASE, MODELS, consensus="mean"), "consensus is 'sum', 'max', or a vote.*not 'mean'"),  # type: ignore[arg-type]
        (lambda: ops.combine(BASE, MODELS, out=BASE[:3]), "out has shape"),
        (lambda: ops.delta_sum(BASE, MODELS, out=BASE.clone()), "torch.float32, the working type"),
        (lambda: ops.delta_sum(BASE, MODELS, [1.0]), "as many weights"),
        (lambda: ops.moments(BASE, MODELS, nonfinite=torch.zeros(3)), "nonfinite must be torch.int64"),
        (lambda: ops.inner_products(BASE, [BASE[:2]]), r"models\[0\] has shape \[2\], g has \[4\]"),
        (lambda: ops.pack_bits(BASE), "mask must be torch.bool"),
        (lambda: ops.unpack_bits(BITS, (9,)), r"packed must be torch.uint8 \[2\]"),
    ],
)
def test_bad_arguments(call: Callable[[], object], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        call()


def test_every_problem_at_once() -> None:
    with pytest.raises(InputError) as caught:
        ops.elect(BASE, [BASE[:3], BASE.int(), BASE.to("meta")])
    assert [f"models[{k}]" in str(caught.value) for k in range(3)] == [True] * 3


def test_unknown_backend_names_the_nearest() -> None:
    with pytest.raises(BackendError, match=r"'nativ'.*native"):
        ops.elect(BASE, MODELS, backend="nativ")


def test_a_requested_backend_never_falls_back() -> None:
    """An op or device that the backend lacks is an error, though another backend has it."""
    lacking = [op for op in ops.OPS if dispatch.why_not(op, "cuda", "cpu")]
    assert set(lacking) == set(ops.OPS)
    with pytest.raises(BackendError, match="cuda"):
        ops.moments(BASE, MODELS, backend="cuda")


def test_without_a_request_the_fastest_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where native cannot be used the reference computes, with the same bits."""
    expected = ops.elect(grid(100, BF16, 1), [grid(100, BF16, 2)])
    monkeypatch.setitem(dispatch.PREFERENCE, "cpu", ("missing", "reference"))
    dispatch.chosen.cache_clear()
    try:
        assert dispatch.choose("elect", "cpu").__module__.startswith("fastmerge.kernels.reference")
        assert_same_bits(ops.elect(grid(100, BF16, 1), [grid(100, BF16, 2)]).unified, expected.unified, "elect")
    finally:
        dispatch.chosen.cache_clear()
