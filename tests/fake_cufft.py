"""A cuFFT of the CPU's: by the C interface of the real one, its layouts, what it requires, and what it destroys.

It keeps to the tensors that a plan is run with.
"""

from __future__ import annotations

import ctypes
import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_int, c_longlong, c_size_t, c_void_p
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fastmerge.kernels.cuda import cufft
from numpy.typing import NDArray
from torch import Tensor

LONG, LONGS = c_longlong, POINTER(c_longlong)
INTERFACE: dict[str, list[Any]] = {  # as in cufft.h
    "cufftCreate": [POINTER(c_int)],
    "cufftDestroy": [c_int],
    "cufftSetAutoAllocation": [c_int, c_int],
    "cufftSetStream": [c_int, c_void_p],
    "cufftSetWorkArea": [c_int, c_void_p],
    "cufftMakePlanMany64": [
        *[c_int, c_int, LONGS, LONGS, LONG, LONG, LONGS, LONG, LONG, c_int, LONG, POINTER(c_size_t)]
    ],
    **{f"cufftExec{kind}": [c_int, c_void_p, c_void_p] for kind in ("R2C", "C2R", "D2Z", "Z2D")},
    **{f"cufftExec{kind}": [c_int, c_void_p, c_void_p, c_int] for kind in ("C2C", "Z2Z")},
}
REAL = {"R2C": "f4", "C2R": "f4", "D2Z": "f8", "Z2D": "f8"}
STREAM, WORKSPACE = 99, 48


class Cufft:
    """`plans`: those that live, by their handles; `made`: what was asked for of each that has lived."""

    def __init__(self, refuses: int = 0) -> None:
        self.refuses = refuses  # the status of every planning
        self.plans: dict[int, dict[str, Any]] = {}
        self.made: list[dict[str, Any]] = []
        self.memory: list[tuple[int, int]] = []  # from where to where tensors are, if it is known
        self.library = SimpleNamespace(
            **{name: ctypes.CFUNCTYPE(c_int, *types)(self._safe(name)) for name, types in INTERFACE.items()}
        )

    def _safe(self, name: str) -> Any:
        def call(*given: Any) -> int:
            try:
                if name.startswith("cufftExec"):
                    return self._execute(name.removeprefix("cufftExec"), *given)
                return int(getattr(self, f"_{name.removeprefix('cufft')}")(*given) or 0)
            except Exception:
                traceback.print_exc()
                return 5

        return call

    def _Create(self, handle: Any) -> None:  # noqa: N802 - cuFFT's names
        handle[0] = len(self.made) + 1
        self.plans[handle[0]] = {}
        self.made.append(self.plans[handle[0]])

    def _Destroy(self, handle: int) -> None:  # noqa: N802
        del self.plans[handle]

    def _SetAutoAllocation(self, handle: int, on: int) -> None:  # noqa: N802
        assert not on
        self.plans[handle]["allocates"] = False

    def _SetStream(self, handle: int, stream: int) -> None:  # noqa: N802
        assert stream == STREAM

    def _SetWorkArea(self, handle: int, area: int) -> None:  # noqa: N802
        self.plans[handle]["area"] = area

    def _MakePlanMany64(  # noqa: N802
        self, handle: int, rank: int, n: Any, inembed: Any, istride: int, idist: int, onembed: Any, ostride: int,
        odist: int, type: int, batch: int, size: Any,
    ) -> int:  # fmt: skip
        plan = self.plans[handle]
        assert plan["allocates"] is False
        sizes, source, target = (own[0] if rank == 1 else (*own[:rank],) for own in (n, inembed, onembed))
        plan |= {"n": sizes, "batch": batch, "type": type}
        plan |= {"in": (source, istride, idist), "out": (target, ostride, odist)}
        size[0] = WORKSPACE
        return self.refuses

    def _execute(self, kind: str, handle: int, source: int, target: int, direction: int = cufft.FORWARD) -> int:
        if handle not in self.plans:
            return 1
        plan, real = self.plans[handle], REAL.get(kind)
        number = {"R2C": "c8", "C2R": "c8", "C2C": "c8"}.get(kind, "c16")
        if plan["type"] != cufft.TYPES[kind]:
            return 3
        if source % np.dtype(number).itemsize or target % np.dtype(number).itemsize:
            return 9
        assert source != target or plan["in"] == plan["out"]
        ctypes.memset(plan["area"], 0xFF, WORKSPACE)
        forwards = real is not None and kind in ("R2C", "D2Z")
        n = (plan["n"],) if isinstance(plan["n"], int) else plan["n"]
        axes = range(1, 1 + len(n))
        if len(n) == 1:
            half = n[0] // 2 + 1
            lengths = (n[0], n[0]) if not real else (n[0], half) if forwards else (half, n[0])
            assert (plan["in"][0], plan["out"][0]) == lengths, "sizes in memory are not those of the transform"
        read = self._view(source, plan["in"], plan["batch"], real if forwards and real else number)
        written = self._view(target, plan["out"], plan["batch"], real if real and not forwards else number)
        if forwards:
            written[:] = np.fft.rfftn(read, axes=axes)
        elif real:
            written[:] = np.fft.irfftn(read, n, axes, norm="forward")
            read[:] = np.nan  # out of place, its input is destroyed all the same
        elif direction == cufft.FORWARD:
            written[:] = np.fft.fftn(read, axes=axes)
        else:
            written[:] = np.fft.ifftn(read, axes=axes, norm="forward")
        return 0

    def _view(
        self, address: int, layout: tuple[int | tuple[int, ...], int, int], batch: int, dtype: str
    ) -> NDArray[Any]:
        """[batch, *sizes]. Elements of the last dimension are `stride` apart, transforms `apart`."""
        sizes, stride, apart = layout
        sizes = (sizes,) if isinstance(sizes, int) else sizes
        size = np.dtype(dtype).itemsize
        strides = [apart, *(stride * math.prod(sizes[i + 1 :]) for i in range(len(sizes)))]
        extent = (sum((count - 1) * step for count, step in zip((batch, *sizes), strides, strict=True)) + 1) * size
        inside = any(start <= address and address + extent <= stop for start, stop in self.memory)
        assert inside or not self.memory, "beyond its tensors"
        memory = np.frombuffer((ctypes.c_char * extent).from_address(address), dtype)
        return np.lib.stride_tricks.as_strided(memory, (batch, *sizes), [step * size for step in strides])


@contextmanager
def in_place_of_cufft(fake: Cufft) -> Iterator[None]:
    """Transforms are the fake's, of tensors on the CPU too."""
    before = cufft._found, cufft._is_torchs, torch.cuda.current_stream, cufft.Plan.run

    def run(plan: cufft.Plan, source: Tensor, target: Tensor, *others: int) -> None:
        storages = source.untyped_storage(), target.untyped_storage()
        fake.memory = [(storage.data_ptr(), storage.data_ptr() + storage.nbytes()) for storage in storages]
        try:
            before[-1](plan, source, target, *others)
        finally:
            fake.memory = []

    cufft.Plan.run = run
    cufft._found, cufft._is_torchs = lambda: fake.library, lambda _: False
    torch.cuda.current_stream = lambda _=None: SimpleNamespace(cuda_stream=STREAM)
    _forget()
    try:
        yield
    finally:
        _forget()
        cufft._found, cufft._is_torchs, torch.cuda.current_stream, cufft.Plan.run = before


def _forget() -> None:
    cufft.plans.cache_clear()
    cufft.library.cache_clear()
