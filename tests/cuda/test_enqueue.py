"""Launches go by what has been compiled, which they find again by all that Triton compiles for."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")
import triton.language as tl  # noqa: E402
from fastmerge.kernels.cuda import enqueue as module  # noqa: E402
from fastmerge.kernels.cuda.enqueue import OPTIONS, enqueue  # noqa: E402

GRID = 3, 1, 1
ROOM = torch.zeros(64)
NAMES = ["x", "y", "n", "TILE", "WORKING"]  # of the kernel's parameters


class Kernel:
    """What Triton makes of a function: it compiles at each launch of its own; the interpreter does not."""

    def __init__(self, interpreted: bool = False) -> None:
        self.fn, self.arg_names, self.interpreted = lambda: None, NAMES, interpreted
        self.compiled: list[dict[str, Any]] = []
        self.launched: list[tuple[Any, ...]] = []
        self.error: Exception | None = None  # of the next launch

    def __getitem__(self, grid: Any) -> Any:
        def launch(*arguments: Any, **constants: Any) -> Any:
            self.compiled.append(constants)
            self._launched(grid, *arguments)
            return None if self.interpreted else {GRID: lambda *all_of_them: self._launched(GRID, *all_of_them)}

        return launch

    def _launched(self, *what: Any) -> None:
        if self.error:
            raise self.error
        self.launched.append(what)


def launch(
    kernel: Kernel,
    x: torch.Tensor = ROOM,
    y: torch.Tensor = ROOM,
    n: int = 5,
    tile: int = 64,
    dtype: Any = torch.float32,
) -> None:
    enqueue(kernel, GRID, x, y, n, TILE=tile, WORKING=dtype, num_warps=4)


def test_what_is_compiled_is_launched_with_new_arguments() -> None:
    kernel, other = Kernel(), ROOM.clone()
    launch(kernel)
    launch(kernel, other, n=7)
    assert kernel.compiled == [{"TILE": 64, "WORKING": tl.float32, "num_warps": 4, **OPTIONS}]
    (_, first, _, n), (_, second, _, m, *constants) = kernel.launched
    assert first is ROOM
    assert second is other
    assert (n, m) == (5, 7)
    assert constants == [64, tl.float32], "in the order of the signature, without options"


CHANGES: dict[str, dict[str, Any]] = {
    "alignment": {"x": ROOM[1:]},
    "alignment of another": {"y": ROOM[1:]},
    "dtype": {"x": ROOM.double()},
    "dtype of another": {"y": ROOM.double()},
    "device": {"x": ROOM.to("meta"), "y": ROOM.to("meta")},
    "one": {"n": 1},
    "sixteen": {"n": 16},
    "large": {"n": (1 << 31) + 1},
    "small": {"n": -(1 << 31) - 1},
    "tile": {"tile": 32},
    "working": {"dtype": torch.float64},
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_triton_compiles_for_is_compiled_anew(name: str) -> None:
    kernel = Kernel()
    for _ in range(2):
        launch(kernel)
        launch(kernel, **CHANGES[name])
    assert len(kernel.compiled) == 2
    assert len(kernel.launched) == 4


def test_another_kernel_is_another() -> None:
    kernels = Kernel(), Kernel()
    for kernel in kernels:
        launch(kernel)
    assert [len(kernel.compiled) for kernel in kernels] == [1, 1]


def test_nothing_is_remembered_where_nothing_is_compiled() -> None:
    kernel = Kernel(interpreted=True)
    launch(kernel)
    launch(kernel)
    assert len(kernel.compiled) == 2


def test_a_compiler_that_is_being_hashed_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton would hash it once more."""
    kernel, begun, hashed = Kernel(), threading.Event(), list[int]()

    def triton_key() -> None:
        begun.set()
        time.sleep(0.05)
        hashed.append(len(kernel.compiled))

    monkeypatch.setattr(module.cache, "triton_key", triton_key)
    monkeypatch.setattr(module, "driver", SimpleNamespace(active=SimpleNamespace(utils=None)))
    module.make_ready.__wrapped__()
    begun.wait()
    launch(kernel)
    assert hashed == [0]
    assert len(kernel.compiled) == 1


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_what_triton_assembles_for_is_known_beforehand(capability: tuple[int, int]) -> None:
    """By the assembler that it calls."""
    module.check_target.__wrapped__(capability)
    unknown = rf"Triton {triton.__version__} does not compile for sm_999, .* CUDA \d+\.\d+ .*; install a newer Triton"
    with pytest.raises(RuntimeError, match=unknown):
        module.check_target.__wrapped__((99, 9))


@pytest.mark.parametrize("lacks", ["get_ptxas", "sm_arch_from_capability"])
def test_a_triton_that_cannot_be_asked_is_tried(lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked is documented nowhere."""
    compiler = pytest.importorskip("triton.backends.nvidia.compiler")
    monkeypatch.delattr(compiler, lacks)
    module.check_target.__wrapped__((99, 9))


@pytest.mark.parametrize("again", [False, True])
def test_a_kernel_without_room_is_out_of_memory(again: bool) -> None:
    """By the error that makes a merge go on in smaller blocks; other errors are Triton's own."""
    kernel = Kernel()
    for message, expected in (("out of memory", torch.OutOfMemoryError), ("invalid argument", RuntimeError)):
        kernel.error = None
        if again:
            launch(kernel)
        kernel.error = RuntimeError(f"Triton Error [CUDA]: {message}")
        with pytest.raises(RuntimeError, match=message) as raised:
            launch(kernel)
        assert raised.type is expected
