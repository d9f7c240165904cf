"""CUDA C++ kernels without a GPU: their own text run on the CPU, thread by thread, against the reference."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import on_cpu
import pytest
import torch
from magnitudes import (
    CUT,
    PAIRS,
    assert_same_cuts,
    assert_same_drops,
    assert_same_expert,
    assert_same_experts,
    assert_same_histograms,
    check_drops,
    cuts,
    pair,
)
from selections import HARD, ranks_of
from tensors import BF16, F16, F32, F64, make
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")
from fastmerge.kernels import cuda, reference
from fastmerge.kernels.cuda import brackets, nvrtc
from fastmerge.kernels.cuda.rank_drop import LONGEST

pytestmark = pytest.mark.skipif(on_cpu.COMPILER is None, reason="no g++ here")
SIZES = (0, 1, 8, 2047, 2049, 65_537)
ORDERS = (0, 1, 2)  # of threads


@pytest.fixture(autouse=True)
def cpu_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "launch", on_cpu.launcher())


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_histogram(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    for n in SIZES:
        assert_same_histograms(*pair(dtypes, n, shift=n % 2))


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_cuts(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    for n in SIZES:
        base, model = pair(dtypes, n, shift=n % 2)
        assert_same_cuts(base, [model, base.roll(1).to(model.dtype)], ranks_of(n))


@pytest.mark.parametrize("name", HARD)
def test_cuts_of_hard_tensors(name: str) -> None:
    """Where many magnitudes are equal, or all are nearly so."""
    base, model = HARD[name](70_001)
    assert_same_cuts(base, [model], ranks_of(70_001))


def test_cuts_of_mixed_models() -> None:
    """One float64 model makes float64 the working type of all."""
    base, model = pair((BF16, F64), 3001)
    assert_same_cuts(base, [model, base.roll(3)], ranks_of(3001))
    counts = [torch.zeros(2, 2048, dtype=torch.int64) for _ in range(2)]
    for backend, own in zip((cuda, reference), counts, strict=True):
        backend.magnitude_histogram(base, [base.roll(3), model], 52, 11, None, False, own)
    assert torch.equal(*counts)


@dataclass
class Ways:
    """The kernels that were launched, and the cuts that were looked for in brackets: None where that was in vain."""

    kernels: list[str] = field(default_factory=list)
    found: list[tuple[int, int] | None] = field(default_factory=list)


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> Ways:
    """Samples are taken of small tensors as of large ones."""
    ways, cuts, launch = Ways(), brackets.cuts, nvrtc.launch

    def spied(*arguments: Any) -> list[tuple[int, int] | None]:
        found = cuts(*arguments)
        ways.found += found
        return found

    def launched(file: str, kernel: str, *arguments: Any) -> None:
        ways.kernels.append(kernel)
        launch(file, kernel, *arguments)

    monkeypatch.setattr(brackets, "LEAST", 1)
    monkeypatch.setattr(brackets, "cuts", spied)
    monkeypatch.setattr(nvrtc, "launch", launched)
    return ways


@pytest.mark.parametrize("dtypes", [pair for pair in PAIRS if F64 not in pair], ids=str)
def test_cuts_of_samples(sampled: Ways, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """Of more ranks than one reading looks for, aligned or not, the sample tells where they are."""
    for n in (1, 8, 300, 16_385, 33_000):
        base, model = pair(dtypes, n, shift=n % 2)
        assert_same_cuts(base, [model, base.roll(1).to(model.dtype)], ranks_of(n))
    assert sampled.found
    assert all(sampled.found)


def fine_tuned(n: int) -> tuple[Tensor, Tensor]:
    """bfloat16 weights that have moved by few units in the last place, so that a magnitude is that of many."""
    generator = torch.Generator().manual_seed(5)
    base = 0.02 * torch.randn(n, generator=generator)
    return base.to(BF16), (base + 1e-4 * torch.randn(n, generator=generator)).to(BF16)


def beyond_finite(n: int) -> tuple[Tensor, Tensor]:
    """As many of the largest magnitude, of infinities, and of NaN of all kinds."""
    i = torch.arange(n)
    bits = torch.where(i % 3 == 2, 0x7F81 + i % 127, 0x7F7F + i % 3) - 0x8000 * (i % 2)
    return torch.zeros(n).to(BF16), bits.to(torch.int16).view(BF16)


ADVERSE: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    **HARD,
    "two values": lambda n: (torch.zeros(n).to(BF16), (1 + torch.arange(n) % 3 // 2).to(BF16)),
    "rising": lambda n: (torch.zeros(n), torch.linspace(0, 1, n)),
    "falling": lambda n: (torch.zeros(n), torch.linspace(1, -0.1, n)),
    "rows of many sizes": lambda n: (torch.zeros(n), make(n, F32, 3) * (torch.arange(n) // 512 % 37).exp2()),
    "fine-tuned": fine_tuned,
    "beyond finite": beyond_finite,
}


@pytest.mark.parametrize("name", ADVERSE)
def test_cuts_of_samples_of_hard_tensors(sampled: Ways, name: str) -> None:
    """Equal magnitudes are as good as others: their indices tell them apart."""
    base, model = ADVERSE[name](70_001)
    assert_same_cuts(base, [model], ranks_of(70_001))
    assert bool(sampled.found) == (F64 not in (base.dtype, model.dtype))
    assert all(sampled.found)


@pytest.mark.parametrize("order", ORDERS)
def test_order_of_appending_does_not_matter(sampled: Ways, order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "launch", on_cpu.launcher(order))
    for name in ("fine-tuned", "mostly NaN"):
        base, model = ADVERSE[name](70_001)
        assert_same_cuts(base, [model], [1, 14_000, 35_000, 70_001])
    assert all(sampled.found)


def test_cuts_of_models_of_two_dtypes(sampled: Ways) -> None:
    base, model = pair((BF16, F16), 3001)
    assert_same_cuts(base, [model, base.roll(3), model.roll(5), base.roll(7).float()], [1, 1500])
    assert all(sampled.found)


def test_inputs_are_read_once(sampled: Ways) -> None:
    """Of a few models and a rank each, whatever the magnitudes."""
    base, model = fine_tuned(20_000)
    assert_same_cuts(base, [model, model.roll(1), base.roll(2), base], [3000])
    assert [kernel for kernel in sampled.kernels if kernel not in ("sample", "narrow")] == ["collect_between"]


def hidden(n: int) -> tuple[Tensor, Tensor]:
    """Small wherever the sample looks, large elsewhere."""
    tau, base = torch.linspace(1, 2, n), torch.zeros(n)
    codes = brackets._samples(base, (ctypes.c_void_p * 1)(tau.data_ptr()), {"BASE": 2, "MODEL": 2, "SLOTS": 1})
    tau[codes[0, 1:-1] & 0xFFFF_FFFF] /= 1000
    return base, tau


IN_VAIN: dict[str, tuple[str, object]] = {
    "brackets before the ranks": ("_ends", lambda rank, n, size: (0, 1)),
    "brackets after the ranks": ("_ends", lambda rank, n, size: (size, size + 1)),
    "brackets of one code": ("_ends", lambda rank, n, size: (size * rank // n, size * rank // n)),
    "no room": ("_room", lambda sampled, n, size: 1),
    "nothing": ("LEAST", 1),
}


@pytest.mark.parametrize("name", IN_VAIN)
@pytest.mark.parametrize("tensor", [fine_tuned, hidden])
def test_cuts_that_brackets_do_not_hold(
    sampled: Ways, tensor: Callable[[int], tuple[Tensor, Tensor]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are found by radix; those of other ranks need not be."""
    monkeypatch.setattr(brackets, *IN_VAIN[name])
    base, model = tensor(9001)
    assert_same_cuts(base, [model], [1, 900, 4000, 8999])
    assert all(sampled.found) == (name == "nothing" and tensor is fine_tuned)


def test_which_tensors_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    cuts = brackets.cuts
    monkeypatch.setattr(brackets, "cuts", lambda base, slots: seen.append(base.numel()) or cuts(base, slots))
    for n in (brackets.LEAST - 1, brackets.LEAST, brackets.LEAST + 3):
        base, model = fine_tuned(n)
        assert_same_cuts(base, [model], [0, n // 5])
    assert seen == [brackets.LEAST, brackets.LEAST + 3]


@pytest.mark.parametrize(("bits", "percent"), [(20, 16), (24, 7.5), (30, 1.8), (32, 1.2)])
def test_memory_for_codes_is_bounded(bits: int, percent: float) -> None:
    """Of the memory of a bfloat16 model, for a rank whose bracket is the widest."""
    n = 1 << bits
    size = 1 << 2 * n.bit_length() // 3
    begin, end = brackets._ends(n // 2, n, size)
    assert 8 * brackets._room(end - begin, n, size) < 2 * n * percent / 100


FAULTS = {
    "queue[s][at] = code;": "fine-tuned",
    "codes[s * room + to] = code;": "two values",  # more in a block than shared memory has room for
    "++own[s];": "two values",
    "own[s] += far >> 31;": "fine-tuned",
}


@pytest.mark.parametrize("line", FAULTS)
def test_a_missing_line_shows(sampled: Ways, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that collect and count what is near a bracket: cuts are wrong, or are not found in brackets."""
    monkeypatch.setattr(nvrtc, "launch", on_cpu.launcher(0, lambda source: source.replace(line, ";")))
    base, model = ADVERSE[FAULTS[line]](70_001)
    actual, expected = (cuts(backend, base, [model], [9_001, 35_000]) for backend in (cuda, reference))
    assert not all(sampled.found) or not all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_experts(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    for n in SIZES:
        assert_same_experts(*pair(dtypes, n, shift=n % 2), ranks_of(n))


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_drops_by_rank(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """Of rows that end on a byte and of others, of tensors that are aligned and that are not."""
    for rows, columns in ((1, 7), (31, 24), (13, 65), (8, 200), (3, 1001), (2, 4096), (5, 14336)):
        base, model = pair(dtypes, rows * columns, shift=rows % 2)
        assert_same_drops(base, model, columns, () if columns == 200 else ("near", "far"))


def test_drops_by_rank_in_parts() -> None:
    """As a GPU is tested, in fewer rows: the others take minutes here."""
    assert check_drops((BF16, F32), CUT[2:4], "cpu") > 0


@pytest.mark.parametrize("name", HARD)
def test_drops_by_rank_of_hard_tensors(name: str) -> None:
    """Where more wait for their ranks than there is room for at a time."""
    assert_same_drops(*HARD[name](2 * 6007), 6007)


def test_drops_by_rank_of_the_longest_rows() -> None:
    """A place in a row has 16 bits, and tells equal magnitudes apart."""
    assert_same_drops(torch.zeros(2 * LONGEST).to(BF16), torch.ones(2 * LONGEST).to(BF16), LONGEST)


@pytest.mark.parametrize("order", ORDERS)
def test_order_of_threads_does_not_matter(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "launch", on_cpu.launcher(order))
    base, model = pair((BF16, BF16), 70_001)
    assert_same_cuts(base, [model], ranks_of(70_001))
    assert_same_expert(base, model, (0.5, 1000), 70_001, BF16)
    assert_same_drops(base[:12_000], model[:12_000], 3000)


def without(line: str) -> Callable[[str], str]:
    """A planted fault: the first such line after the scan's reading is gone."""

    def change(source: str) -> str:
        at = source.index("u32 before = threadIdx.x >= step")
        return source[:at] + source[at:].replace(line, "", 1)

    return change


def test_a_missing_barrier_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the barrier between reading and adding, threads in another order sum up something else."""
    seen = []
    for order in ORDERS:
        monkeypatch.setattr(nvrtc, "launch", on_cpu.launcher(order, without("__syncthreads();")))
        base, model = pair((BF16, BF16), 9001)
        try:
            assert_same_expert(base, model, (0.5, 1000), 9001, BF16)
        except AssertionError:
            seen.append(order)
    assert seen
