"""How CUDA C++ kernels are loaded and launched, with a driver that runs them on the CPU."""

from __future__ import annotations

import ctypes
import traceback
from ast import literal_eval
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_longlong, c_uint, c_void_p, cast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import on_cpu
import pytest
import torch
from magnitudes import assert_same_cuts, assert_same_drops, pair
from tensors import BF16, F16, F32, make

pytest.importorskip("triton", reason="Triton is not installed")
from fastmerge.kernels.cuda import brackets, magnitude, nvrtc

pytestmark = pytest.mark.skipif(on_cpu.COMPILER is None, reason="no g++ here")


INTERFACE: dict[str, list[Any]] = {  # as in cuda.h
    "cuCtxGetCurrent": [POINTER(c_void_p)],
    "cuCtxSetCurrent": [c_void_p],
    "cuDeviceGet": [POINTER(c_int), c_int],
    "cuDevicePrimaryCtxRetain": [POINTER(c_void_p), c_int],
    "cuModuleLoadData": [POINTER(c_void_p), c_char_p],
    "cuModuleGetFunction": [POINTER(c_void_p), c_void_p, c_char_p],
    "cuLaunchKernel": [c_void_p, *[c_uint] * 7, c_void_p, POINTER(c_void_p), c_void_p],
    "cuGetErrorString": [c_int, POINTER(c_char_p)],
}
CONTEXT, MODULES, FUNCTIONS, STREAM = (i << 40 for i in range(1, 5))  # handles, which take more than 32 bits


class Driver:
    """libcuda's functions that are called, as ctypes finds them in a library. What is loaded are a source and its
    defines; `memory`: where the tensors of a launch begin, and the bytes of their elements."""

    def __init__(self) -> None:
        self.context, self.refuses = True, 0  # with what status
        self.calls: list[str] = []
        self.modules: list[tuple[str, tuple[tuple[str, int], ...]]] = []
        self.functions: list[tuple[int, str]] = []  # of which module
        self.launched: list[int] = []
        self.memory: set[tuple[int | None, int]] = set()
        self.callbacks = {name: CFUNCTYPE(c_int, *types)(self._safe(name)) for name, types in INTERFACE.items()}
        self.library = SimpleNamespace(  # of functions whose arguments nobody has told ctypes
            **{name: CFUNCTYPE(c_int)(cast(callback, c_void_p).value) for name, callback in self.callbacks.items()}
        )

    @property
    def names(self) -> list[str]:
        return [name for _, name in self.functions]

    def _safe(self, name: str) -> Any:
        def call(*given: Any) -> int:
            self.calls.append(name)
            try:
                return int(getattr(self, f"_{name}", lambda *_: 0)(*given))
            except Exception:
                traceback.print_exc()
                return 1

        return call

    def _cuCtxGetCurrent(self, context: Any) -> int:  # noqa: N802 - the driver's names
        context[0] = CONTEXT if self.context else None
        return 0

    def _cuDeviceGet(self, device: Any, number: int) -> int:  # noqa: N802
        device[0] = number + 5
        return 0

    def _cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> int:  # noqa: N802
        assert device >= 5
        context[0] = CONTEXT
        return 0

    def _cuCtxSetCurrent(self, context: int) -> int:  # noqa: N802
        assert context == CONTEXT
        return 0

    def _cuModuleLoadData(self, module: Any, code: bytes) -> int:  # noqa: N802
        if not code:
            return 200
        self.modules.append(literal_eval(code.decode()))
        module[0] = MODULES + len(self.modules)
        return self.refuses

    def _cuModuleGetFunction(self, function: Any, module: int, name: bytes) -> int:  # noqa: N802
        self.functions.append((module - MODULES, name.decode()))
        function[0] = FUNCTIONS + len(self.functions)
        return 0

    def _cuLaunchKernel(self, function: int, *given: Any) -> int:  # noqa: N802
        *sizes, shared, stream, arguments, extra = given
        blocks, threads = sizes[0], sizes[3]
        assert sizes == [blocks, 1, 1, nvrtc.THREADS, 1, 1]
        assert (shared, stream, extra) == (0, STREAM, None)
        self.launched.append(function - FUNCTIONS)
        module, name = self.functions[function - FUNCTIONS - 1]
        built = on_cpu.library(*self.modules[module - 1])
        for i, (_, pointed) in enumerate(on_cpu.signature(built, name)):
            assert not pointed or (c_void_p.from_address(arguments[i]).value, pointed) in self.memory
        built[f"run_{name}"](blocks, threads, arguments)
        return 0

    def _cuGetErrorString(self, status: int, text: Any) -> int:  # noqa: N802
        text[0] = b"no kernel image is available"
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Driver]:
    made, load, launch = Driver(), ctypes.CDLL, nvrtc.launch

    def compiled(source: str, _: tuple[int, int], defines: Mapping[str, int]) -> bytes:
        return repr((source, tuple(defines.items()))).encode()

    def watched(file: str, kernel: str, defines: Mapping[str, int], blocks: int, arguments: Any, on: Any) -> None:
        built = on_cpu.library(nvrtc.source_of(file), tuple(defines.items()))
        on_cpu.check_arguments(built, kernel, arguments)
        made.memory = {(a.data_ptr() or None, a.element_size()) for a in arguments if isinstance(a, torch.Tensor)}
        launch(file, kernel, defines, blocks, arguments, on)

    def library(name: str, *others: Any) -> Any:
        return made.library if name == "libcuda.so.1" else load(name, *others)

    monkeypatch.setattr(nvrtc, "launch", watched)
    monkeypatch.setattr(ctypes, "CDLL", library)
    monkeypatch.setattr(nvrtc, "on_device", lambda _: nullcontext())
    monkeypatch.setattr(nvrtc, "compile_source", compiled)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(nvrtc, "version", lambda: (12, 9))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=STREAM))
    for cached in (nvrtc._driver, nvrtc._function, nvrtc._module):
        cached.cache_clear()
    yield made
    for cached in (nvrtc._driver, nvrtc._function, nvrtc._module):
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


def test_arrays_arrive_by_value(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models' addresses, of as many as one reading looks into."""
    monkeypatch.setattr(brackets, "LEAST", 1)
    base, model = pair((BF16, F16), 3001)
    assert_same_cuts(base, [model, base.roll(3), model.roll(5), model.roll(7)], [1, 1500])
    assert {*driver.names} == {"sample", "narrow", "collect_between"}
    assert {dict(defines)["SLOTS"] for _, defines in driver.modules} == {2, 4}


def test_other_sources_arrive(driver: Driver) -> None:
    """Rows are ranked by their own kernel, and part of them; modules are of one source each."""
    base, model = pair((BF16, F32), 8 * 1001)
    assert_same_drops(base, model, 1001)
    counts = torch.zeros(2048, dtype=torch.int64)
    magnitude.histogram(base, model, 20, 11, None, False, counts)
    assert int(counts.sum()) == base.numel()
    assert driver.names == ["rank_drop", "histogram"]
    assert [source for source, _ in driver.modules] == [nvrtc.source_of(f) for f in ("rank_drop.cu", "magnitude.cu")]


Arguments = list[Any]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda a: [*a[1::-1], *a[2:]], id="two-tensors-swapped"),
        pytest.param(lambda a: [a[0], *a[2:0:-1], *a[3:]], id="tensor-and-number-swapped"),
        pytest.param(lambda a: [*a[:3], a[5], a[4], a[3], *a[6:]], id="numbers-swapped"),
        pytest.param(lambda a: [*a[:2], c_int(a[2].value), *a[3:]], id="narrow-number"),
        pytest.param(lambda a: [*a[:3], c_longlong(a[3].value), *a[4:]], id="wide-number"),
        pytest.param(lambda a: [*a[:-1], a[-1].int()], id="narrow-elements"),
        pytest.param(lambda a: [*a[:-1], c_longlong(a[-1].data_ptr())], id="address-as-number"),
        pytest.param(lambda a: a[:-1], id="one-missing"),
        pytest.param(lambda a: [*a, a[-1]], id="one-more"),
    ],
)
@pytest.mark.parametrize("by", ["driver", "on-cpu"])
def test_wrong_arguments_are_told(
    by: str, change: Callable[[Arguments], Arguments], driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of other widths than the kernel's."""
    launch = nvrtc.launch if by == "driver" else on_cpu.launcher()
    base, model = make(5000, BF16, 1), make(5000, F32, 2)
    monkeypatch.setattr(nvrtc, "launch", lambda *given: launch(*given[:-2], change(given[-2]), given[-1]))
    with pytest.raises(AssertionError, match="histogram takes"):
        histogram(base, model)
    assert not driver.launched


def reordered(arguments: Any, places: list[int]) -> Any:
    return (c_void_p * len(places))(*(arguments[i] for i in places))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda f, *a: (f, *a[3:6], *a[:3], *a[6:]), id="blocks-and-threads"),
        pytest.param(lambda f, *a: (f, a[1], a[0], *a[2:]), id="axes"),
        pytest.param(lambda f, *a: (f, *a[:3], a[3] // 2, *a[4:]), id="threads"),
        pytest.param(lambda f, *a: (f, *a[:6], 48, *a[7:]), id="shared-memory"),
        pytest.param(lambda f, *a: (f, *a[:7], a[7] & 0xFFFF_FFFF, *a[8:]), id="stream"),
        pytest.param(lambda f, *a: (f, *a[:8], reordered(a[8], [0, 6, 2, 3, 4, 5, 1]), a[9]), id="swapped"),
        pytest.param(lambda f, *a: (f, *a[:8], reordered(a[8], [0, 1, 2, 3, 4, 5, 2]), a[9]), id="number-as-address"),
        pytest.param(lambda f, *a: (f + 1, *a), id="function"),
    ],
)
def test_wrong_launches_are_told(change: Callable[..., Any], driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the stand-in, which looks at all that the driver is given."""
    base, model = make(40_000, BF16, 1), make(40_000, F32, 2)
    assert int(histogram(base, model).sum()) == 40_000
    execute = driver._cuLaunchKernel
    monkeypatch.setattr(driver, "_cuLaunchKernel", lambda *given: execute(*change(*given)))
    with pytest.raises(RuntimeError, match="CUDA driver, launching histogram"):
        histogram(base, model)


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
