"""CUDA C++ beside the Triton kernels: compiled by NVRTC when first used, launched through the driver.

Both libraries come with what a GPU needs anyway, NVRTC with torch's CUDA wheels. Compiling needs no GPU.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .launch import on_device

THREADS = 256  # of every block, as the sources say
OPTIONS = ("-std=c++17", "--fmad=false")
MAJORS = (13, 12)  # of CUDA
OUT_OF_MEMORY = 2  # a CUresult

Argument = ctypes.c_longlong | ctypes.c_int | ctypes.c_void_p


@functools.cache
def library() -> ctypes.CDLL:
    """NVRTC, of torch's CUDA version where it has one. Raises RuntimeError, saying what to install."""
    majors = (int(torch.version.cuda.split(".")[0]),) if torch.version.cuda else MAJORS
    if not {*majors} <= {*MAJORS}:
        wanted = " or ".join(map(str, sorted(MAJORS)))
        raise RuntimeError(
            f"PyTorch is built for CUDA {majors[0]}; install one for CUDA {wanted} (https://pytorch.org/get-started)"
        )
    folders = [Path(entry, "nvidia", part, "lib") for entry in sys.path for part in ("cuda_nvrtc", "cu13")]
    names = [f"libnvrtc.so.{major}" for major in majors]
    files = [str(folder / name) for name in names for folder in folders if (folder / name).is_file()]
    for candidate in (*files, *names):
        for part in Path(candidate).parent.glob("libnvrtc-builtins.so.*"):  # which NVRTC asks for by name alone
            with suppress(OSError):
                ctypes.CDLL(str(part))
        with suppress(OSError):
            return ctypes.CDLL(candidate)
    raise RuntimeError(f"NVRTC of CUDA {majors[0]} is not installed: pip install {package(majors[0])}")


def package(major: int) -> str:
    """What pip installs NVRTC of a CUDA version by."""
    return f"'nvidia-cuda-nvrtc{'-cu12' if major == 12 else ''}=={major}.*'"


def version() -> tuple[int, int]:
    """Of NVRTC."""
    major, minor = c_int(), c_int()
    library().nvrtcVersion(byref(major), byref(minor))
    return major.value, minor.value


@functools.cache
def architectures() -> list[int]:
    """What NVRTC compiles for, in order: 90 for sm_90."""
    count = c_int()
    library().nvrtcGetNumSupportedArchs(byref(count))
    found = (c_int * count.value)()
    library().nvrtcGetSupportedArchs(found)
    return sorted(found)


def check(capability: tuple[int, int]) -> None:
    """Raise RuntimeError, saying what to install, without an NVRTC that compiles for GPUs of this capability."""
    known, number = architectures(), 10 * capability[0] + capability[1]
    if number not in known:
        (major, minor), age = version(), "a newer" if number > known[0] else "an older"
        raise RuntimeError(
            f"NVRTC {major}.{minor} does not compile for sm_{number}, but for sm_{', '.join(map(str, known))}; install "
            f"{age} one (pip install --upgrade {package(major)}), or PyTorch for {age} CUDA"
        )


def compile_source(source: str, capability: tuple[int, int], defines: Mapping[str, int]) -> bytes:
    """Machine code of a CUDA C++ source for GPUs of this capability. Raises RuntimeError with the compiler's words."""
    options = [f"-arch=sm_{capability[0]}{capability[1]}", *OPTIONS, *(f"-D{k}={v}" for k, v in defines.items())]
    nvrtc, program, size = library(), c_void_p(), c_size_t()
    nvrtc.nvrtcCreateProgram(byref(program), source.encode(), b"source.cu", 0, None, None)
    try:
        status = nvrtc.nvrtcCompileProgram(
            program, len(options), (c_char_p * len(options))(*(option.encode() for option in options))
        )
        if status:
            nvrtc.nvrtcGetProgramLogSize(program, byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise RuntimeError(f"NVRTC {'.'.join(map(str, version()))} refuses {options[0]}: {log.value.decode()}")
        nvrtc.nvrtcGetCUBINSize(program, byref(size))
        code = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, code)
        return code.raw
    finally:
        nvrtc.nvrtcDestroyProgram(byref(program))


def source_of(file: str) -> str:
    """The text of a file beside this one, with that of the headers that it includes."""
    folder = Path(__file__).parent
    text = (folder / file).read_text("utf-8")
    header = r'^#include "(\w+\.cuh)"$'
    return re.sub(header, lambda found: (folder / found[1]).read_text("utf-8"), text, flags=re.MULTILINE)


def compiled(source: str, capability: tuple[int, int], defines: Mapping[str, int], *, anew: bool = False) -> bytes:
    """What compile_source gives, kept in the user's cache folder, since it takes seconds.

    anew: what is kept there is no good.
    """
    what = repr((source, capability, sorted(defines.items()), OPTIONS, version()))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    file = cache / "fastmerge" / f"{hashlib.sha256(what.encode()).hexdigest()}.cubin"
    if not anew:
        with suppress(OSError):
            return file.read_bytes()
    code = compile_source(source, capability, defines)
    with suppress(OSError):  # what cannot be kept is compiled again
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        scratch.write_bytes(code)
        scratch.replace(file)
    return code


def launch(
    file: str, kernel: str, defines: Mapping[str, int], blocks: int, arguments: Sequence[Any], on: Tensor
) -> None:
    """Launch a kernel of a source beside this file on the current stream of the tensor's GPU.

    arguments: tensors, given as their addresses, and ctypes numbers of the kernel's own types.
    """
    given = [c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments]
    addresses = (c_void_p * len(given))(*(ctypes.addressof(a) for a in given))
    with on_device(on):
        _make_current(on.device.index)
        function = _function(file, kernel, tuple(defines.items()), on.device.index)
        stream = c_void_p(torch.cuda.current_stream(on.device).cuda_stream)
        grid, block = (blocks, 1, 1), (THREADS, 1, 1)
        _check(_driver().cuLaunchKernel(function, *grid, *block, 0, stream, addresses, None), f"launching {kernel}")


@functools.cache
def _driver() -> ctypes.CDLL:
    driver = ctypes.CDLL("libcuda.so.1")
    driver.cuLaunchKernel.argtypes = [c_void_p, *[ctypes.c_uint] * 7, c_void_p, POINTER(c_void_p), c_void_p]
    return driver


@functools.cache
def _function(file: str, kernel: str, defines: tuple[tuple[str, int], ...], device: int) -> c_void_p:
    function = c_void_p()
    status = _driver().cuModuleGetFunction(byref(function), _module(file, defines, device), kernel.encode())
    _check(status, f"finding {kernel}")
    return function


@functools.cache
def _module(file: str, defines: tuple[tuple[str, int], ...], device: int) -> c_void_p:
    """A source's machine code, loaded on a GPU for as long as the process lives."""
    source, capability = source_of(file), torch.cuda.get_device_capability(device)
    module = c_void_p()
    status = _driver().cuModuleLoadData(byref(module), compiled(source, capability, dict(defines)))
    if status not in (0, OUT_OF_MEMORY):  # as of a file that was cut short
        status = _driver().cuModuleLoadData(byref(module), compiled(source, capability, dict(defines), anew=True))
    _check(status, f"loading what NVRTC {'.'.join(map(str, version()))} has compiled; the driver may be too old for it")
    return module


def _make_current(device: int) -> None:
    """Threads that have not called CUDA's runtime yet have no context; torch's is each GPU's primary one."""
    driver, context, handle = _driver(), c_void_p(), c_int()
    _check(driver.cuCtxGetCurrent(byref(context)), "asking for the context")
    if not context:
        _check(driver.cuDeviceGet(byref(handle), device), "asking for the GPU")
        _check(driver.cuDevicePrimaryCtxRetain(byref(context), handle), "taking the GPU's context")
        _check(driver.cuCtxSetCurrent(context), "using the GPU's context")


def _check(status: int, doing: str) -> None:
    if status:
        text = c_char_p()
        _driver().cuGetErrorString(status, byref(text))
        kind = torch.OutOfMemoryError if status == OUT_OF_MEMORY else RuntimeError
        raise kind(f"CUDA driver, {doing}: {(text.value or b'unknown error').decode()}")
