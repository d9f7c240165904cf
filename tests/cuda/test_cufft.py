"""What cuFFT is asked for, by way of one that transforms on the CPU."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from ctypes import c_longlong
from pathlib import Path
from typing import Any

import pytest
import torch
from tensors import F32, F64
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")
from fake_cufft import Cufft, in_place_of_cufft
from fastmerge.kernels import cuda
from fastmerge.kernels.cuda import cufft


@pytest.fixture
def fake() -> Iterator[Cufft]:
    made = Cufft()
    with in_place_of_cufft(made):
        yield made
    gc.collect()
    assert not made.plans


def transformed(x: Tensor) -> Tensor:
    spectrum = torch.empty(len(x), x.shape[1] // 2 + 1, dtype=x.dtype.to_complex(), device=x.device)
    cufft.forward(x, spectrum)
    return spectrum


def forward() -> None:
    x = torch.randn(5, 9)
    torch.testing.assert_close(transformed(x), torch.fft.rfft(x))


def inverse() -> None:
    x, back = torch.randn(5, 9), torch.empty(5, 9)
    cufft.inverse(torch.fft.rfft(x), back)
    torch.testing.assert_close(back, 9 * x)


def rows() -> None:
    x = torch.randn(5, 16, dtype=torch.complex64)
    part, whole = x[:, :9], torch.zeros_like(x)
    cufft.rows(part, whole[:, :9], cufft.FORWARD)
    torch.testing.assert_close(whole, torch.cat([torch.fft.fft(part), torch.zeros(5, 7)], 1))


@pytest.mark.parametrize("real", [F32, F64], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (1, 8), (5, 9), (6, 10), (4, 27)], ids=str)
@pytest.mark.parametrize("at_once", [1, 40, 1 << 27])
def test_transforms_are_those_of_torch(
    shape: tuple[int, int], real: torch.dtype, at_once: int, fake: Cufft, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of real rows and of complex ones, where they lie or to elsewhere, however many at once."""
    monkeypatch.setattr(cufft, "AT_ONCE", at_once)
    x = torch.randn(shape, dtype=real)
    spectrum = transformed(x)
    torch.testing.assert_close(spectrum, torch.fft.rfft(x))
    some, other = spectrum[:, shape[1] // 4 :], spectrum.clone()
    expected = torch.fft.fft(some)
    cufft.rows(some, other[:, shape[1] // 4 :], cufft.FORWARD)
    torch.testing.assert_close(other[:, shape[1] // 4 :], expected)
    cufft.rows(some, some, cufft.FORWARD)
    torch.testing.assert_close(some, expected)
    cufft.rows(some, some, cufft.INVERSE)
    torch.testing.assert_close(some, torch.fft.ifft(expected, norm="forward"))
    torch.testing.assert_close(spectrum[:, : shape[1] // 4], torch.fft.rfft(x)[:, : shape[1] // 4])
    back = torch.empty_like(x)
    cufft.inverse(torch.fft.rfft(x), back)
    torch.testing.assert_close(back, x * shape[1])


# By where it is among what a plan is made of.
WRONG = {
    "length": (2, lambda n: (c_longlong * 1)(n[0] - 1)),
    "size-read": (3, lambda size: (c_longlong * 1)(size[0] + 1)),
    "stride-read": (4, lambda stride: 2 * stride),
    "distance-read": (5, lambda distance: distance - 1),
    "size-written": (6, lambda size: (c_longlong * 1)(size[0] + 1)),
    "stride-written": (7, lambda stride: 2 * stride),
    "distance-written": (8, lambda distance: distance + 1),
    "type": (9, lambda kind: kind ^ 6),
    "fewer-rows": (10, lambda batch: batch - 1),
    "more-rows": (10, lambda batch: batch + 1),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("transforms", [forward, inverse, rows])
def test_wrong_plans_are_told(
    transforms: Callable[[], None], name: str, fake: Cufft, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the numbers, or by the stand-in, which keeps to its tensors."""
    transforms()
    place, change = WRONG[name]
    plan = fake._MakePlanMany64

    def wrongly(*given: Any) -> int:
        return plan(*given[:place], change(given[place]), *given[place + 1 :])

    monkeypatch.setattr(fake, "_MakePlanMany64", wrongly)
    cufft.plans.cache_clear()
    with pytest.raises((AssertionError, RuntimeError)):
        transforms()


def test_complex_rows_are_planned_where_they_lie(fake: Cufft) -> None:
    """As far apart as they are; sizes are given, without which strides would be ignored."""
    panel = torch.zeros(12, 32, dtype=torch.complex64)[:, :29]
    cufft.rows(panel, panel, cufft.FORWARD)
    cufft.rows(panel, panel, cufft.INVERSE)
    lie = (29, 1, 32)
    (made,) = fake.made
    made.pop("area")
    assert made == {"allocates": False, "n": 29, "batch": 12, "type": 0x29, "in": lie, "out": lie}


@pytest.mark.parametrize(("n", "at_once"), [(254, [10]), (262, [2] * 5), (128, [10])])
def test_a_large_prime_factor_makes_plans_smaller(
    n: int, at_once: list[int], fake: Cufft, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such lengths take workspaces many times as large."""
    monkeypatch.setattr(cufft, "AT_ONCE", 20 * 262)
    x = torch.zeros(10, n, dtype=torch.complex128)
    cufft.rows(x, x, cufft.FORWARD)
    assert [plan["batch"] for plan in fake.made] == sorted(set(at_once))


def test_rows_are_planned(fake: Cufft) -> None:
    transformed(torch.zeros(6, 9, dtype=F64))
    cufft.inverse(torch.zeros(6, 5, dtype=torch.complex64), torch.empty(6, 9))
    there, back = fake.made
    assert (there["n"], there["batch"], there["type"], there["in"], there["out"]) == (9, 6, 0x6A, (9, 1, 9), (5, 1, 5))
    assert (back["n"], back["batch"], back["type"], back["in"], back["out"]) == (9, 6, 0x2C, (5, 1, 5), (9, 1, 9))


def test_few_plans_are_kept(fake: Cufft, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was not used for longest is destroyed, once nobody transforms with it."""
    monkeypatch.setattr(cufft, "PLANS", 2)
    for rows in (1, 2, 1, 3):
        transformed(torch.zeros(rows, 4))
    assert [plan["batch"] for plan in fake.plans.values()] == [1, 3]
    used = cufft.plans(torch.device("cpu"))("R2C", 4, (1, 4, 1, 3), 1)
    for rows in (4, 5, 6):
        transformed(torch.zeros(rows, 4))
    assert [plan["batch"] for plan in fake.plans.values()] == [1, 5, 6]
    del used
    gc.collect()
    assert [plan["batch"] for plan in fake.plans.values()] == [5, 6]


def test_each_gpu_has_plans_of_its_own(fake: Cufft, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as are kept, and found again there."""
    used: list[tuple[torch.device, int]] = []
    monkeypatch.setattr(cufft.Plan, "run", lambda plan, source, *_: used.append((source.device, plan.handle)))
    monkeypatch.setattr(cufft, "PLANS", 1)
    for device in ("cpu", "meta", "cpu", "meta"):
        transformed(torch.zeros(3, 4, device=device))
    assert used == [(torch.device("cpu"), 1), (torch.device("meta"), 2)] * 2


@pytest.mark.parametrize(("status", "error"), [(2, torch.OutOfMemoryError), (8, RuntimeError)])
def test_a_refusal_is_told_and_leaves_nothing(status: int, error: type[Exception], fake: Cufft) -> None:
    fake.refuses = status
    with pytest.raises(error, match=r"planning 3 R2C transforms of length 4: (no memory|invalid size)"):
        transformed(torch.zeros(3, 4))
    gc.collect()
    assert not fake.plans


@pytest.mark.parametrize(
    ("cuda", "install"), [("13.0", r"'nvidia-cufft==12\.\*'"), ("12.8", r"'nvidia-cufft-cu12==11\.\*'")]
)
def test_a_missing_library_is_told(cuda: str, install: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: Any) -> Any:
        raise OSError

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(cufft.ctypes, "CDLL", nothing)
    with pytest.raises(RuntimeError, match=rf"cuFFT of CUDA {cuda[:2]} is not installed: pip install {install}"):
        cufft._found()


@pytest.mark.parametrize(("library", "ops"), [("cufft", cuda.TRANSFORMED), ("nvrtc", cuda.COMPILED)])
def test_the_ops_that_need_a_library_are_told(library: str, ops: tuple[str, ...]) -> None:
    """They are those whose modules import it, by however many steps."""
    folder = Path(cufft.__file__).parent

    def imported(name: str) -> set[str]:
        text = (folder / f"{name}.py").read_text("utf-8")
        lists = re.findall(r"^from \. import (.+)$", text, re.MULTILINE)
        return {*re.findall(r"^from \.(\w+) import", text, re.MULTILINE), *", ".join(lists).split(", ")} - {""}

    users = {library}
    while more := {file.stem for file in folder.glob("[!_]*.py") if imported(file.stem) & users} - users:
        users |= more
    many = {f"{op}_many" for op in ops}
    assert {*ops} == {name for name in cuda.__all__ if getattr(cuda, name).__module__.split(".")[-1] in users} - many
