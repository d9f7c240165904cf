"""Which GPUs can be used, why others cannot, and what computes there."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmerge import dispatch, gpus, ops
from fastmerge.engine.identity import backend
from fastmerge.errors import BackendError, InputError


def test_backend_of_a_device() -> None:
    """A device's backend goes into what tells one merge from another."""
    assert backend("cpu") in dispatch.backends()
    assert backend("cuda:0,cuda:1") in ("cuda", "reference")


@pytest.mark.parametrize(
    ("device", "wrong"),
    [("gpu", "expected auto"), ("cuda:x", "expected auto"), ("cuda:0,cuda:0", "once"), ("cuda,cuda:1", "once")],
)
def test_device_names(device: str, wrong: str) -> None:
    with pytest.raises(InputError, match=wrong):
        gpus.settle(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu() -> None:
    """An explicit request says what is missing, auto goes on without, and says so where there is hardware."""
    with pytest.raises(InputError, match=r"'cuda:1' cannot be used: .*; or use cpu"):
        gpus.settle("cuda:1")
    assert gpus.settle("auto")[0] == "cpu"


STATES = {
    "no CUDA": ({"version": None}, "built without CUDA"),
    "ROCm": ({"version": None, "hip": "6.4"}, "built without CUDA"),
    "no driver": ({"available": False}, "driver is missing or too old"),
    "too few": ({"index": 3}, "numbered from 0"),
    "old": ({"capability": (7, 0)}, "sm_80 is the least"),
    "new for Triton": ({"capability": (99, 9)}, "Triton 3.9.0 does not compile for sm_999"),
    "new for NVRTC": (
        {"capability": (10, 3), "architectures": [80, 90, 100, 120]},
        "NVRTC 12.8 does not compile for sm_103, but for sm_80, 90, 100, 120; install a newer one "
        "(pip install --upgrade 'nvidia-cuda-nvrtc-cu12==12.*'), or PyTorch for a newer CUDA",
    ),
    "old for NVRTC": (
        {"capability": (8, 0), "architectures": [90, 100, 120]},
        "NVRTC 12.8 does not compile for sm_80, but for sm_90, 100, 120; install an older one",
    ),
    "no compiler": ({"compiler": False}, "install a C compiler"),
    "CUDA 11": ({"version": "11.8", "nvrtc": False}, "install one for CUDA 12 or 13"),
    "no NVRTC": ({"nvrtc": False}, "pip install 'nvidia-cuda-nvrtc"),
    "no cuFFT": ({"cufft": False}, "pip install 'nvidia-cufft"),
    "no Triton": ({"backend": "Triton is not installed: pip install"}, "pip install"),
    "fine": ({}, None),
}


class Compilerless:
    """Triton's, where it finds no compiler."""

    @property
    def active(self) -> object:
        raise RuntimeError("Failed to find C compiler.")


class Nvrtc:
    """NVRTC 12.8, as ctypes calls it, which compiles for these."""

    def __init__(self, architectures: list[int]) -> None:
        self.architectures = architectures

    def nvrtcVersion(self, major: Any, minor: Any) -> None:  # noqa: N802 - the library's names
        major._obj.value, minor._obj.value = 12, 8

    def nvrtcGetNumSupportedArchs(self, count: Any) -> None:  # noqa: N802
        count._obj.value = len(self.architectures)

    def nvrtcGetSupportedArchs(self, found: Any) -> None:  # noqa: N802
        found[:] = self.architectures


@pytest.fixture(params=STATES)
def state_of_a_gpu(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """Two GPUs that are not there, with one of the states."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from fastmerge.kernels import cuda
    from fastmerge.kernels.cuda import cufft, enqueue, nvrtc

    given, expected = STATES[request.param]
    monkeypatch.setattr(torch.version, "cuda", given.get("version", "12.8"))
    monkeypatch.setattr(torch.version, "hip", given.get("hip"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: given.get("available", True))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: given.get("capability", (9, 0)))
    monkeypatch.setattr(cuda.triton, "__version__", "3.9.0")
    for what, module in (("nvrtc", nvrtc), ("cufft", cufft)):
        if given.get(what, True):
            made = Nvrtc(given.get("architectures", [80, 90]))
            monkeypatch.setattr(module, "library", lambda made=made: made)
        else:
            monkeypatch.setattr(module.ctypes, "CDLL", lambda *_: (_ for _ in ()).throw(OSError()))
            module.library.cache_clear()
    if given.get("compiler", True):
        monkeypatch.setattr(cuda, "make_ready", lambda: None)
    else:
        monkeypatch.setattr(enqueue, "driver", Compilerless())
    if "backend" in given:
        load = dispatch.load
        monkeypatch.setattr(dispatch, "load", lambda name: given["backend"] if name == "cuda" else load(name))
    remembered = dispatch.chosen, dispatch.lacking, nvrtc.architectures, enqueue.make_ready
    for cached in remembered:
        cached.cache_clear()
    yield request.param, given, expected
    for cached in remembered:
        cached.cache_clear()


def test_why_a_gpu_cannot_be_used(
    state_of_a_gpu: tuple[str, dict[str, Any], str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reason says what to do."""
    name, given, expected = state_of_a_gpu
    reason = gpus.why_not(f"cuda:{given.get('index', 1)}")
    assert reason is None if expected is None else expected in str(reason)
    monkeypatch.setattr(gpus, "HARDWARE", (Path("/"),))
    device, notes = gpus.settle("auto")
    if expected is not None and name != "too few":
        assert device == "cpu"
        assert expected in notes[0]


def test_what_computes_where_a_gpu_cannot_be_used(
    state_of_a_gpu: tuple[str, dict[str, Any], str | None], caplog: pytest.LogCaptureFixture
) -> None:
    """The reference, with the reason logged, of the ops that want what is missing; by name it is an error."""
    from fastmerge.kernels import cuda

    name, _, expected = state_of_a_gpu
    every = {"Filtered", *ops.OPS} & {*cuda.__all__}
    wants = dict.fromkeys(("no NVRTC", "CUDA 11", "new for NVRTC", "old for NVRTC"), cuda.COMPILED)
    wants["no cuFFT"] = cuda.TRANSFORMED
    lacking = wants.get(name, every if name in ("ROCm", "old", "new for Triton", "no compiler", "no Triton") else ())
    assert every > {*cuda.COMPILED, *cuda.TRANSFORMED}
    for op in every:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            kernel = dispatch.choose(op, torch.device("cuda", 1))
        assert kernel.__module__.split(".")[2] == ("reference" if op in lacking else "cuda"), op
        assert (str(expected) in caplog.text) == (op in lacking)
        if op in lacking:
            reason = rf"{op} on cuda:1: backend 'cuda' cannot be used .*{re.escape(str(expected))}"
            with pytest.raises(BackendError, match=reason):
                dispatch.choose(op, torch.device("cuda", 1), "cuda")


def test_each_gpu_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own capability, when its first tensor comes; for no other device, and for no type of them."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from fastmerge.kernels import cuda

    asked: list[int] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: asked.append(gpu) or ((9, 0), (6, 1))[gpu])
    monkeypatch.setattr(cuda, "make_ready", lambda: None)
    for cached in (dispatch.chosen, dispatch.lacking):
        cached.cache_clear()
    try:
        for device in ("cuda", "cpu", torch.device("cpu"), torch.device("meta")):
            dispatch.choose("elect", device)
        assert not asked
        for _ in range(3):
            kernels = [dispatch.choose("elect", torch.device("cuda", gpu)) for gpu in (0, 1)]
        assert [kernel.__module__.split(".")[2] for kernel in kernels] == ["cuda", "reference"]
        assert asked == [0, 1]
    finally:
        for cached in (dispatch.chosen, dispatch.lacking):
            cached.cache_clear()
