"""How CUDA C++ kernels are loaded and launched, with a driver that runs them on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import on_cpu
import pytest
import torch
from tensors import BF16, F32, make

pytest.importorskip("triton", reason="Triton is not installed")
from fastmerge.kernels.cuda import magnitude, nvrtc

pytestmark = pytest.mark.skipif(on_cpu.COMPILER is None, reason="no g++ here")


class Driver:
    """libcuda's functions that are called, as ctypes calls them. What is loaded are its defines; kernels are names."""

    def __init__(self) -> None:
        self.context, self.refuses = True, 0  # with what status
        self.calls: list[str] = []
        self.names: list[str] = []
        self.launched: list[int] = []

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any) -> int:
            self.calls.append(name)
            return int(getattr(type(self), f"_{name}", lambda *_: 0)(self, *given))

        return call

    def _cuCtxGetCurrent(self, context: Any) -> int:  # noqa: N802 - the driver's names
        context._obj.value = 1 if self.context else None
        return 0

    def _cuModuleLoadData(self, module: Any, code: bytes) -> int:  # noqa: N802
        self.defines = code.decode()
        module._obj.value = 7
        return self.refuses if code else 200

    def _cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> int:  # noqa: N802
        assert module.value == 7
        self.names.append(name.decode())
        function._obj.value = len(self.names)
        return 0

    def _cuLaunchKernel(self, function: Any, *given: Any) -> int:  # noqa: N802
        blocks, _, _, threads, _, _, shared, stream, arguments, extra = given
        assert (shared, stream.value, extra) == (0, 99, None)
        self.launched.append(function.value)
        built = on_cpu.library(nvrtc.source_of(magnitude.SOURCE), tuple(eval(self.defines)))
        built[f"run_{self.names[function.value - 1]}"](blocks, threads, arguments)
        return 0

    def _cuGetErrorString(self, status: int, text: Any) -> int:  # noqa: N802
        text._obj.value = b"no kernel image is available"
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Driver]:
    made = Driver()
    monkeypatch.setattr(nvrtc, "_driver", lambda: made)
    monkeypatch.setattr(nvrtc, "on_device", lambda _: nullcontext())
    monkeypatch.setattr(nvrtc, "compile_source", lambda *given: repr([*given[2].items()]).encode())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(nvrtc, "version", lambda: (12, 9))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=99))
    for cached in (nvrtc._function, nvrtc._module):
        cached.cache_clear()
    yield made
    for cached in (nvrtc._function, nvrtc._module):
        cached.cache_clear()


def histogram(base: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    counts = torch.zeros(2048, dtype=torch.int64)
    magnitude.histogram(base, model, 20, 11, None, False, counts)
    return counts


def test_arguments_arrive(driver: Driver) -> None:
    """Every kernel, with its numbers and tensors; modules are loaded once for each pair of dtypes."""
    base, model = make(5000, BF16, 1, special=False), make(5000, BF16, 2, special=False)
    keys = (model.float() - base.float()).abs().view(torch.int32).long()
    for _ in range(2):
        assert torch.equal(histogram(base, model), torch.bincount(keys >> 20, minlength=2048))
    selection = magnitude.above(1.0, 100, False)
    counts = magnitude.count(base, model, selection)
    offsets, values = torch.empty(int(counts), dtype=torch.uint16), torch.empty(int(counts), dtype=F32)
    magnitude.collect(base, model, selection, counts, offsets, values)
    tau = model.float() - base.float()
    above = (tau.abs() > 1) | ((tau.abs() == 1) & (torch.arange(5000) < 100))
    assert torch.equal(offsets.long(), above.nonzero()[:, 0])
    assert torch.equal(values, tau[above])
    assert driver.calls.count("cuModuleLoadData") == 1
    assert driver.names == ["histogram", "count_selected", "collect_selected"]
    histogram(base, model.float())
    assert driver.calls.count("cuModuleLoadData") == 2
    assert "cuCtxSetCurrent" not in driver.calls


def test_a_new_thread_takes_the_context_of_torch(driver: Driver) -> None:
    driver.context = False
    histogram(torch.zeros(9), torch.ones(9))
    assert driver.calls.index("cuDevicePrimaryCtxRetain") < driver.calls.index("cuCtxSetCurrent")


def test_each_gpu_has_modules_of_its_own(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled for what it is capable of, loaded once there, and launched from there."""
    launch, asked = nvrtc.launch, list[int]()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: asked.append(gpu) or (9, gpu))
    for gpu in (0, 1, 0, 1):
        on = SimpleNamespace(device=torch.device("cuda", gpu))
        monkeypatch.setattr(nvrtc, "launch", lambda *given, on=on: launch(*given[:-1], on))
        assert histogram(torch.zeros(9), torch.ones(9)).sum() == 9
    assert asked == [0, 1]
    assert driver.calls.count("cuModuleLoadData") == 2
    assert driver.launched == [1, 2, 1, 2]


def test_an_old_driver_is_told(driver: Driver) -> None:
    driver.refuses = 209
    with pytest.raises(RuntimeError, match=r"NVRTC 12\.9 .* driver may be too old for it: no kernel image"):
        histogram(torch.zeros(9), torch.ones(9))


def test_no_memory_is_told_as_torch_tells_it(driver: Driver) -> None:
    """So that a merge goes on in smaller blocks."""
    driver.refuses = nvrtc.OUT_OF_MEMORY
    with pytest.raises(torch.OutOfMemoryError):
        histogram(torch.zeros(9), torch.ones(9))


def test_a_damaged_file_is_compiled_again(driver: Driver, tmp_path: Path) -> None:
    histogram(torch.zeros(9), torch.ones(9))
    (file,) = tmp_path.rglob("*.cubin")
    whole = file.read_bytes()
    file.write_bytes(b"")
    nvrtc._module.cache_clear()
    nvrtc._function.cache_clear()
    assert int(histogram(torch.zeros(9), torch.ones(9)).sum()) == 9
    assert file.read_bytes() == whole
    assert [*tmp_path.rglob("*.cubin*")] == [file]
