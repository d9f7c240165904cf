"""Kernels launched on the CPU, by what Triton and NVRTC make of them for a GPU (ptx.py)."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from compiled import launching
from fastmerge.kernels.cuda import launch, nvrtc
from ptx import WARP, Grid, MachineError, parse
from torch import Tensor


def launcher(capability: int, change: Callable[[str], str], elsewhere: Sequence[Tensor]) -> Callable[..., None]:
    """nvrtc.launch on the CPU, of the PTX that NVRTC compiles.

    change: plants a fault in the PTX; elsewhere: tensors that kernels get as addresses.
    """

    def launch(
        file: str, kernel: str, defines: dict[str, int], blocks: int, arguments: Sequence[Any], on: Tensor
    ) -> None:
        code = parse(change(compiled_ptx(file, capability, tuple(defines.items()))), kernel)
        tensors = [*elsewhere, *(x for x in arguments if isinstance(x, Tensor))]
        values = [
            x.data_ptr() if isinstance(x, Tensor) else bytes(x) if isinstance(x, ctypes.Array) else x.value
            for x in arguments
        ]
        try:
            Grid(code, (blocks, 1), nvrtc.THREADS, 0, values, tensors).run()
        except (MachineError, NotImplementedError) as error:
            raise type(error)(f"{kernel}: {error}") from error

    return launch


@functools.cache
def compiled_ptx(file: str, capability: int, defines: tuple[tuple[str, int], ...]) -> str:
    """What NVRTC makes its machine code of."""

    class Library:
        def __getattr__(self, name: str) -> Any:
            return getattr(library(), name.replace("CUBIN", "PTX"))

    library = nvrtc.library
    with patch.object(nvrtc, "library", Library):
        return nvrtc.compile_source(nvrtc.source_of(file), divmod(capability, 10), dict(defines)).decode().rstrip("\0")


@contextmanager
def executing(capability: int, change: Callable[[str], str] = lambda ptx: ptx) -> Iterator[list[str]]:
    """Calls of the cuda backend take CPU tensors, and what they launch runs. Yields the kernels' names.

    change: plants a fault in the PTX.
    """
    ran: list[str] = []
    in_tables: list[Tensor] = []  # whose addresses kernels find in memory
    number = launch._number

    def told(x: Tensor | float | int | None) -> int:
        if isinstance(x, Tensor):
            in_tables.append(x)
        return number(x)

    def execute(kernel: Any, blocks: Sequence[int], arguments: dict[str, Any]) -> None:
        given = [arguments[name] for name, type_ in kernel.src.signature.items() if type_ != "constexpr"]
        values = [x.data_ptr() if isinstance(x, Tensor) else x for x in given]
        tensors = [*in_tables, *(x for x in given if isinstance(x, Tensor))]
        code, threads = parse(change(kernel.asm["ptx"])), WARP * kernel.metadata.num_warps
        try:
            Grid(code, blocks, threads, kernel.metadata.shared, values, tensors).run()
        except (MachineError, NotImplementedError) as error:
            raise type(error)(f"{kernel.name}: {error}") from error
        ran.append(kernel.name)

    launch._number = told
    try:
        with launching(capability, execute):
            yield ran
    finally:
        launch._number = number
