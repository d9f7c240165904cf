"""A driver that runs CUDA C++ kernels on the CPU (cuda/cuda_on_cpu.hpp), in the place of kernels/cuda/nvrtc.launch."""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from ctypes import c_void_p
from pathlib import Path
from typing import Any

from fastmerge.kernels.cuda import nvrtc
from torch import Tensor

COMPILER = shutil.which("g++")
HEADER = Path(__file__).parent / "cuda" / "cuda_on_cpu.hpp"
THREADS = 256
KERNEL = re.compile(r"extern \"C\" __global__ void(?: __launch_bounds__\(\w+\))?\s+(\w+)\(")


@functools.cache
def library(source: str, defines: tuple[tuple[str, int], ...], order: int = 0) -> ctypes.CDLL:
    """A source compiled for the CPU; `run_<kernel>` launches a kernel, `describe_<kernel>` tells its arguments."""
    launchers = [
        f'extern "C" void run_{name}(unsigned blocks, unsigned threads, void** given) '
        f"{{ on_cpu::launch<{name}>(blocks, threads, given); }}\n"
        f'extern "C" unsigned describe_{name}(unsigned* found) {{ return on_cpu::describe({name}, found); }}'
        for name in KERNEL.findall(source)
    ]
    folder = Path(tempfile.mkdtemp())
    text = "\n".join([f'#include "{HEADER}"', source, *launchers])
    (folder / "kernels.cpp").write_text(text)
    macros = [f"-D{name}={value}" for name, value in (*defines, ("ORDER", order))]
    command = [COMPILER or "g++", "-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-w", *macros]
    subprocess.run([*command, "kernels.cpp", "-o", "kernels.so"], cwd=folder, check=True)
    built = ctypes.CDLL(str(folder / "kernels.so"))
    shutil.rmtree(folder)
    return built


def signature(built: ctypes.CDLL, kernel: str) -> list[tuple[int, int]]:
    """Of each argument of a kernel: its bytes, and those of what it points to, or 0."""
    found = (ctypes.c_uint * 64)()
    count = built[f"describe_{kernel}"](found)
    return list(zip(found[: 2 * count : 2], found[1 : 2 * count : 2], strict=True))


def check_arguments(built: ctypes.CDLL, kernel: str, arguments: Sequence[Any]) -> None:
    """They are as many and as wide as the kernel takes, and tensors, whose elements are, where it takes pointers."""
    given = [(8, a.element_size()) if isinstance(a, Tensor) else (ctypes.sizeof(a), 0) for a in arguments]
    wanted = signature(built, kernel)
    assert given == wanted, f"{kernel} takes {wanted}, and was given {given}"


def launcher(order: int = 0, change: Callable[[str], str] = str) -> Callable[..., None]:
    """nvrtc.launch on the CPU, of the sources' text as `change` leaves it."""

    def launch(
        file: str, kernel: str, defines: Mapping[str, int], blocks: int, arguments: Sequence[Any], on: Tensor
    ) -> None:
        assert all(not isinstance(a, Tensor) or a.is_contiguous() for a in arguments)
        assert 0 < blocks < 1 << 31
        built = library(change(nvrtc.source_of(file)), tuple(defines.items()), order)
        check_arguments(built, kernel, arguments)
        given = [c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments]
        built[f"run_{kernel}"](blocks, THREADS, (c_void_p * len(given))(*map(ctypes.addressof, given)))

    return launch
