"""cuFFT, called directly: it transforms where numbers lie, and into memory that is there, while torch's functions copy.

Plans take workspaces from torch's allocator. Tensors on the CPU, where Triton interprets, are torch's to transform.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from ctypes import POINTER, byref, c_int, c_longlong, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PLANS = 64  # that a GPU keeps
AT_ONCE = 1 << 27  # real numbers of a plan, about
PRIME, PART = 127, 4  # beyond such a prime factor workspaces are many times as large, and a plan is of a part of that
FORWARD, INVERSE = -1, 1
TYPES = {"R2C": 0x2A, "C2R": 0x2C, "C2C": 0x29, "D2Z": 0x6A, "Z2D": 0x6C, "Z2Z": 0x69}
COMPLEX = "C2C", "Z2Z"
PACKAGES = {13: (12, "nvidia-cufft"), 12: (11, "nvidia-cufft-cu12")}  # cuFFT's version, of CUDA's, and what has it
NO_MEMORY = 2
STATUSES = {
    1: "invalid plan",
    NO_MEMORY: "no memory",
    3: "invalid type",
    4: "invalid value",
    5: "internal error",
    6: "execution failed",
    7: "setup failed; the driver may be too old for it",
    8: "invalid size",
    9: "unaligned data",
}


def forward(x: Tensor, spectrum: Tensor, at_once: int | None = None) -> None:
    """The half-spectrum of each real row: x [rows, w], spectrum [rows, w // 2 + 1].

    at_once: how many rows a plan is of at most, here and in what follows.
    """
    if _is_torchs(x):
        torch.fft.rfft(x, out=spectrum)
    else:
        _transform("R2C" if x.dtype == torch.float32 else "D2Z", x.shape[1], at_once, x, spectrum)


def inverse(spectrum: Tensor, x: Tensor, at_once: int | None = None) -> None:
    """The real rows of half-spectra, times w. The spectrum is destroyed."""
    if _is_torchs(x):
        torch.fft.irfft(spectrum, n=x.shape[1], norm="forward", out=x)
    else:
        _transform("C2R" if x.dtype == torch.float32 else "Z2D", x.shape[1], at_once, spectrum, x)


def rows(source: Tensor, target: Tensor, direction: int, at_once: int | None = None) -> None:
    """Complex rows [rows, n], not normalised. The target may be the source; rows may be any distance apart."""
    if _is_torchs(source):
        forwards = direction == FORWARD
        target.copy_(torch.fft.fft(source) if forwards else torch.fft.ifft(source, norm="forward"))
    else:
        kind = "C2C" if source.dtype == torch.complex64 else "Z2Z"
        _transform(kind, source.shape[1], at_once, source, target, direction)


def _is_torchs(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _transform(
    kind: str, n: int, at_once: int | None, source: Tensor, target: Tensor, direction: int = FORWARD
) -> None:
    """Transforms of length n by the first dimension, on the current GPU and stream."""
    if n == 1:
        if target is not source:
            target.copy_(source if target.is_complex() else source.real)
        return
    numbers = n * (2 if kind in COMPLEX else 1) * (PART if _largest_prime(n) > PRIME else 1)
    # An even number, so that rows of odd length begin where a complex number may: cuFFT requires it.
    together = min(at_once or len(source), max(2, AT_ONCE // numbers // 2 * 2))
    layout = *reversed(source.stride()), *reversed(target.stride())
    for first in range(0, len(source), together):
        plan = plans(source.device)(kind, n, layout, min(together, len(source) - first))
        plan.run(source, target, first, direction)


@functools.lru_cache(maxsize=1024)
def _largest_prime(n: int) -> int:
    prime = 2
    while prime * prime <= n:
        if n % prime:
            prime += 1
        else:
            n //= prime
    return n


@functools.cache
def plans(device: torch.device) -> Callable[..., Plan]:
    """Makes a GPU's plans, and keeps those used last; one that falls out lives until nobody uses it."""
    return functools.lru_cache(maxsize=PLANS)(Plan)


class Plan:
    """`batch` transforms of length n on the GPU that is current now.

    layout: how far apart elements are in the source, and transforms; then the same in the target.
    """

    def __init__(self, kind: str, n: int, layout: tuple[int, int, int, int], batch: int) -> None:
        self.kind, self.what = kind, f"{batch} {kind} transforms of length {n}"
        self.lock = threading.Lock()  # a plan has one stream and one workspace at a time
        cufft, handle, size = library(), c_int(), c_size_t()
        _check(cufft.cufftCreate(byref(handle)), "beginning a plan")
        self.handle = handle.value
        weakref.finalize(self, cufft.cufftDestroy, self.handle).atexit = False  # then the process frees all anyway
        _check(cufft.cufftSetAutoAllocation(self.handle, 0), "beginning a plan")
        # Where no sizes in memory are given, strides are ignored.
        length, source, target = ((c_longlong * 1)(size) for size in (n, *_sizes(kind, n)))
        _check(
            cufft.cufftMakePlanMany64(
                self.handle, 1, length, source, *layout[:2], target, *layout[2:], TYPES[kind], batch, byref(size)
            ),
            f"planning {self.what}",
        )
        self.workspace = size.value

    def run(self, source: Tensor, target: Tensor, first: int, direction: int) -> None:
        """Transform rows `first` on, on the current stream. direction: of complex ones to complex ones."""
        cufft = library()
        which = (direction,) if self.kind in COMPLEX else ()
        with self.lock:
            workspace = torch.empty(self.workspace, dtype=torch.uint8, device=source.device)
            stream = torch.cuda.current_stream(source.device).cuda_stream
            _check(cufft.cufftSetStream(self.handle, stream), "taking torch's stream")
            _check(cufft.cufftSetWorkArea(self.handle, workspace.data_ptr()), "taking a workspace")
            run = getattr(cufft, f"cufftExec{self.kind}")
            begin, end = (t.data_ptr() + first * t.stride(0) * t.element_size() for t in (source, target))
            _check(run(self.handle, begin, end, *which), self.what)


def _sizes(kind: str, n: int) -> tuple[int, int]:
    """How many elements a transform reads and writes."""
    half = n // 2 + 1
    return {"R2C": (n, half), "D2Z": (n, half), "C2R": (half, n), "Z2D": (half, n)}.get(kind, (n, n))


def _check(status: int, doing: str) -> None:
    if status:
        error = torch.OutOfMemoryError if status == NO_MEMORY else RuntimeError
        raise error(f"cuFFT, {doing}: {STATUSES.get(status, f'error {status}')}")


@functools.cache
def library() -> Any:
    """cuFFT of torch's CUDA version: what torch has loaded, or a file beside it. Raises RuntimeError otherwise."""
    found = _found()
    functions: dict[str, list[Any]] = {
        "Create": [POINTER(c_int)],
        "Destroy": [c_int],
        "SetAutoAllocation": [c_int, c_int],
        "SetStream": [c_int, c_void_p],
        "SetWorkArea": [c_int, c_void_p],
        "MakePlanMany64": [c_int, c_int, *[POINTER(c_longlong), POINTER(c_longlong), c_longlong, c_longlong],
                           *[POINTER(c_longlong), c_longlong, c_longlong], c_int, c_longlong, POINTER(c_size_t)],
        **{f"Exec{kind}": [c_int, c_void_p, c_void_p, *([c_int] if kind in COMPLEX else [])] for kind in TYPES},
    }  # fmt: skip
    for name, arguments in functions.items():
        function = getattr(found, f"cufft{name}")
        function.argtypes, function.restype = arguments, c_int
    return found


def _found() -> ctypes.CDLL:
    major = int(torch.version.cuda.split(".")[0]) if torch.version.cuda else max(PACKAGES)
    version, package = PACKAGES.get(major, PACKAGES[max(PACKAGES)])
    name = f"libcufft.so.{version}"
    with suppress(OSError):
        return ctypes.CDLL(name, os.RTLD_NOLOAD)
    folders = [Path(entry, "nvidia", part, "lib") for entry in sys.path for part in ("cufft", f"cu{major}")]
    for candidate in (*(str(folder / name) for folder in folders if (folder / name).is_file()), name):
        with suppress(OSError):
            return ctypes.CDLL(candidate)
    raise RuntimeError(f"cuFFT of CUDA {major} is not installed: pip install '{package}=={version}.*'")
