"""What a GPU is given to run, run on the CPU: the kernels' PTX gives the reference's bits, and keeps to its memory."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")
import ptx  # noqa: E402
import triton.language as tl  # noqa: E402
from batches import check_batches, check_modulation, check_scattering  # noqa: E402
from combined import check_low_ranks, check_overflows, check_selections  # noqa: E402
from compiled import OPS, TARGETS  # noqa: E402
from executed import executing  # noqa: E402
from fastmerge.kernels import cuda  # noqa: E402
from fastmerge.kernels.cuda import enqueue  # noqa: E402
from fastmerge.kernels.cuda.exponential import exp, expm1  # noqa: E402
from fastmerge.kernels.reference import exponential  # noqa: E402
from filters import GROUPS, check_group  # noqa: E402
from misfits import check_misfits  # noqa: E402
from ops.test_conformance import DEVICES, compare  # noqa: E402
from tensors import BF16, F16, F32, F64, assert_same_bits, at_odd_place, make  # noqa: E402

from fastmerge import ops  # noqa: E402

Case = tuple[tuple[torch.dtype, ...], int, int, bool]  # dtypes, models, elements, and whether some are at odd places
FEW: list[Case] = [((BF16,), 3, 4133, False), ((BF16, F32), 2, 1031, True), ((F64,), 9, 513, False)]
MANY = [
    ((dtype,), k, n, odd)
    for dtype in (BF16, F16, F32, F64)
    for k, n, odd in ((1, 7, False), (1, 2053, True), (3, 2053, False), (8, 1025, False), (9, 1025, True))
]
MANY += [
    ((F16, BF16, F64), 5, 515, False),
    ((BF16, F32), 17, 515, True),
    ((BF16,), 64, 257, False),
    ((F32,), 2, 0, False),
]


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEVICES, "cuda", "cpu")
    filter_ = sys.modules["fastmerge.kernels.cuda.highpass_merge"]  # the package's attribute is the op
    for name in ("BLOCK", "PLANNED"):  # which the filter's cases change
        monkeypatch.setattr(filter_, name, getattr(filter_, name))


def check(op: str, cases: list[Case], capability: int) -> None:
    with executing(capability) as ran:
        for dtypes, k, n, odd in cases:
            inputs = [make(n, dtypes[i % len(dtypes)], seed=97 * i + n, special=n > 8) for i in range(k + 1)]
            inputs = [at_odd_place(x) if odd and i % 3 == 0 else x for i, x in enumerate(inputs)]
            compare(op, "cuda", inputs, dtypes[0] if n % 2 else dtypes[-1], f"{dtypes} K={k} n={n}")
    assert ran


@pytest.mark.parametrize("op", OPS)
def test_ptx_equals_the_reference(op: str) -> None:
    check(op, FEW, 90)


@pytest.mark.aot
@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize("op", OPS)
def test_all_ptx_equals_the_reference(op: str, capability: int) -> None:
    check(op, MANY, capability)


def test_ptx_of_selections() -> None:
    with executing(90):
        assert check_selections("cuda", "cpu")
        assert check_overflows("cuda", "cpu")
        assert check_low_ranks("cuda", "cpu")


def test_ptx_of_many_tensors() -> None:
    with executing(90):
        assert sum(check_batches(op, "cpu") for op in OPS)
        assert sum(check_misfits(op, cuda, "cpu") for op in OPS)
        assert check_modulation("cpu", "cuda")
        assert check_scattering("cpu", "cuda")


@pytest.mark.parametrize(
    "group",
    [pytest.param(group, marks=() if group in ("nonfinite", "together") else pytest.mark.aot) for group in GROUPS],
)
def test_ptx_of_the_filter(group: str) -> None:
    with executing(90):
        assert check_group(group, "cpu")


@triton.jit
def raising(x, raised, less, SIZE: tl.constexpr, WORKING: tl.constexpr):
    offsets = tl.arange(0, SIZE)
    value = tl.load(x + offsets)
    tl.store(raised + offsets, exp(value, WORKING))
    tl.store(less + offsets, expm1(value, WORKING))


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_exponentials_have_the_bits_of_the_reference(dtype: torch.dtype) -> None:
    """Which rounds by torch.round: where two whole numbers are as near as each other, and about there, too."""
    halves = ((torch.arange(-115, 115, dtype=F64) + 0.5) / exponential.LOG2_E).to(dtype)
    about = torch.stack([halves, *(halves.nextafter(torch.full_like(halves, end)) for end in (-99, 99))])
    ends = torch.tensor([0.0, -0.0, 80.0, -80.0, 1e-30, -1e-30], dtype=dtype)
    x = torch.cat([about.view(-1), ends, torch.linspace(-80, 80, 1352, dtype=dtype)])
    assert ((x * exponential.LOG2_E).frac().abs() == 0.5).sum() > 50
    raised, less = torch.empty_like(x), torch.empty_like(x)
    with executing(90):
        working = enqueue.TYPES[dtype]
        raising[(1, 1)](x, raised, less, SIZE=x.numel(), WORKING=working, **enqueue.OPTIONS)
    assert_same_bits(raised, exponential.exp(x), "exp")
    assert_same_bits(less, exponential.expm1(x), "expm1")


def elect() -> None:
    """In bfloat16, of models whose sums several warps find."""
    base, *models = (make(2053, BF16, seed, special=False) for seed in range(4))
    compare("elect", "cuda", [base, *models], BF16, "")


def drop() -> None:
    base, *models = (make(2053, BF16, seed, special=False) for seed in range(4))
    kept = ops.Kept(drop=[ops.Drop(7 + k, 1 << 31) for k in range(3)])
    own, expected = (ops.combine(base, models, kept=kept, backend=name).merged for name in ("cuda", "reference"))
    assert_same_bits(own, expected, "drop")


@pytest.mark.parametrize(
    ("call", "old", "new"),
    [
        pytest.param(elect, r"(bfly[^;]*), 8, 31", r"\1, 16, 31", id="wrong-lane"),
        pytest.param(elect, r"abs\.f32", "neg.f32", id="wrong-sign"),
        pytest.param(elect, r"max\.s64", "min.s64", id="wrong-end"),
        pytest.param(drop, r"mov\.b64 \{(%\w+), (%\w+)\}, p;", r"mov.b64 {\2, \1}, p;", id="wrong-half"),
    ],
)
def test_planted_faults_change_results(call: Callable[[], None], old: str, new: str) -> None:
    changed = 0

    def change(code: str) -> str:
        nonlocal changed
        code, count = re.subn(old, new, code)
        changed += count
        return code

    with executing(90):
        call()
    with executing(90, change), pytest.raises(AssertionError):
        call()
    assert changed


@triton.jit
def reaching(x, out, distance, SIZE: tl.constexpr):
    offsets = tl.arange(0, SIZE)
    tl.store(out + offsets, tl.load(x + distance.to(tl.int64) + offsets))


@triton.jit
def promising(x, out, SIZE: tl.constexpr):
    offsets = tl.arange(0, SIZE)
    tl.store(out + offsets, tl.load(tl.multiple_of(x + 1, 16) + offsets))


@triton.jit
def fusing(x, out, SIZE: tl.constexpr):
    value = tl.load(x + tl.arange(0, SIZE))
    tl.store(out + tl.arange(0, SIZE), tl.fma(value, value, value))


@triton.jit
def adding(x, out, SIZE: tl.constexpr):
    tl.store(out, tl.sum(tl.load(x + tl.arange(0, SIZE)), 0))


@pytest.mark.parametrize(
    ("kernel", "arguments", "old", "expected"),
    [
        pytest.param(reaching, (1 << 30,), None, "beyond the tensors", id="beyond"),
        pytest.param(promising, (), None, "an odd address", id="odd-address"),
        pytest.param(adding, (), r"bar\.sync[^;]*;", "no barrier since another warp", id="no-barrier"),
        pytest.param(fusing, (), None, r"fma\.rn", id="unknown"),
    ],
)
def test_planted_faults_are_told(kernel: Any, arguments: tuple[int, ...], old: str | None, expected: str) -> None:
    x, out = torch.ones(1024), torch.empty(1024)

    def launch(change: Callable[[str], str] = lambda code: code) -> None:
        with executing(90, change):
            kernel[(1, 1)](x, out, *arguments, SIZE=1024, **enqueue.OPTIONS)

    if old:
        launch()
        assert out[0] == 1024
    with pytest.raises((ptx.MachineError, NotImplementedError), match=expected):
        launch(lambda code: re.sub(old, "", code) if old else code)


@pytest.mark.parametrize(
    "name", ["bar.sync 0", "shfl.sync.bfly.b32 %r2, %r1, 1, 31, -1", "redux.sync.add.s32 %r2, %r1, -1"]
)
def test_threads_that_do_not_come_together_are_told(name: str) -> None:
    """Half of a warp waits for the other, which waits elsewhere."""
    code = f"""
    .entry kernel(.param .u64 kernel_param_0) {{
        .reg .pred %p<2>; .reg .b32 %r<3>;
        mov.u32 %r1, %tid.x;
        setp.lt.u32 %p1, %r1, 16;
        @%p1 bra $there;
        {name};
        ret;
    $there:
        {name};
        ret;
    }}
    $func_end0:"""
    with pytest.raises(ptx.MachineError, match="together"):
        ptx.Grid(ptx.parse(code), (1, 1), 32).run()
