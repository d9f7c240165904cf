"""CUDA C++ kernels without a GPU: their own text run on the CPU, thread by thread, against the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import on_cpu
import pytest
import torch
from selections import HARD, ranks_of
from tensors import BF16, F16, F32, F64, assert_same_bits, make
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")
from fastmerge.kernels import cuda, reference
from fastmerge.kernels.cuda import nvrtc

pytestmark = pytest.mark.skipif(on_cpu.COMPILER is None, reason="no g++ here")
SOURCES = Path(nvrtc.__file__).parent
PAIRS = [(BF16, BF16), (F16, F32), (F32, F16), (F32, F32), (F64, BF16), (F32, F64)]
SIZES = (0, 1, 8, 2047, 2049, 65_537)
ORDERS = (0, 1, 2)  # of threads


@pytest.fixture(autouse=True)
def cpu_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "launch", on_cpu.launcher(SOURCES))


def pair(dtypes: tuple[torch.dtype, torch.dtype], n: int, shift: int = 0) -> tuple[Tensor, Tensor]:
    """A base and a model with zeros, infinities and NaN, `shift` elements past an aligned address."""
    base, model = (make(n + shift, d, seed=n + i)[shift:] for i, d in enumerate(dtypes))
    return base, model


def cuts(backend: object, base: Tensor, models: list[Tensor], ranks: list[int]) -> tuple[Tensor, Tensor]:
    magnitudes = torch.empty(len(models), len(ranks), dtype=F64)
    indices = torch.empty(len(models), len(ranks), dtype=torch.int64)
    backend.kth_magnitude(base, models, [ranks] * len(models), magnitudes, indices)  # type: ignore[attr-defined]
    return magnitudes, indices


def assert_same_cuts(base: Tensor, models: list[Tensor], ranks: list[int]) -> None:
    actual, expected = (cuts(backend, base, models, ranks) for backend in (cuda, reference))
    assert_same_bits(actual[0], expected[0], "magnitudes")
    assert torch.equal(actual[1], expected[1])


def expert(
    backend: object, base: Tensor, model: Tensor, cut: tuple[float, int], room: int, out: torch.dtype
) -> tuple[int, Tensor, Tensor, Tensor]:
    counts = torch.full((-(-base.numel() // 65_536),), -1, dtype=torch.int32)
    offsets, values = torch.zeros(room, dtype=torch.uint16), torch.zeros(room, dtype=out)
    found = backend.extract_topk(base, model, *cut, counts, offsets, values)  # type: ignore[attr-defined]
    return found, counts, offsets.view(torch.int16), values


def assert_same_expert(base: Tensor, model: Tensor, cut: tuple[float, int], room: int, out: torch.dtype) -> None:
    actual, expected = (expert(backend, base, model, cut, room, out) for backend in (cuda, reference))
    assert actual[0] == expected[0]
    for name, mine, theirs in zip(("counts", "offsets", "values"), actual[1:], expected[1:], strict=True):
        assert_same_bits(mine, theirs, name)


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_histogram(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """Of the highest bits, of lower ones, of those under a prefix, and in float64."""
    for n in SIZES:
        base, model = pair(dtypes, n, shift=n % 2)
        bits = 63 if F64 in dtypes else 31
        for shift, width, prefix, wide in (
            (bits - 11, 11, None, False),
            (3, 13, None, False),
            (bits - 21, 10, [1022 if bits == 63 else 1016], False),
            (52, 11, None, True),
        ):
            counts = [torch.ones(1, 1 << width, dtype=torch.int64) for _ in range(2)]
            cuda.magnitude_histogram(base, [model], shift, width, prefix, wide, counts[0])
            reference.magnitude_histogram(base, [model], shift, width, prefix, wide, counts[1])
            assert torch.equal(*counts)


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


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_experts(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """Above cuts of ranks, between equal magnitudes, at the ends; with room for all, for some, and for none."""
    for n in SIZES:
        base, model = pair(dtypes, n, shift=n % 2)
        magnitudes, indices = cuts(reference, base, [model], ranks_of(n))
        found = list(zip(magnitudes[0].tolist(), indices[0].tolist(), strict=True))
        for cut in (*found, (0.25, n // 3), (torch.inf, n), (torch.nan, 1), (-1.0, 0), (0.1, 0)):
            assert_same_expert(base, model, cut, n, dtypes[0])
        assert_same_expert(base, model, (0.25, 0), n // 9, BF16)
        assert_same_expert(base, model, (0.25, 0), 0, F16)


@pytest.mark.parametrize("order", ORDERS)
def test_order_of_threads_does_not_matter(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "launch", on_cpu.launcher(SOURCES, order))
    base, model = pair((BF16, BF16), 70_001)
    assert_same_cuts(base, [model], ranks_of(70_001))
    assert_same_expert(base, model, (0.5, 1000), 70_001, BF16)


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
        monkeypatch.setattr(nvrtc, "launch", on_cpu.launcher(SOURCES, order, without("__syncthreads();")))
        base, model = pair((BF16, BF16), 9001)
        try:
            assert_same_expert(base, model, (0.5, 1000), 9001, BF16)
        except AssertionError:
            seen.append(order)
    assert seen
