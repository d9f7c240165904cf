"""What an op launches, compiled without a GPU: the wrappers run, each launch is compiled for a target and collected."""

from __future__ import annotations

import collections
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from fastmerge.kernels import cuda
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from fastmerge import dispatch, ops

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
RELEASE = tuple(int(part) for part in triton.__version__.split(".")[:2])
TARGETS = [80, 90] + ([100] if RELEASE >= (3, 9) else [])  # an older one fuses arithmetic there, and is rejected
# Tested elsewhere: what is CUDA C++, and what has transforms between its kernels.
OTHERS = {"magnitude_histogram", "kth_magnitude", "extract_topk", "highpass", "highpass_merge"}
OPS = [op for op in ops.OPS if hasattr(cuda, op) and op not in OTHERS]
# A thread, so that 512 threads fit on a multiprocessor; of what older releases compile 384.
MOST_REGISTERS = 128 if RELEASE >= (3, 9) else 168
# Bytes a thread: to get by with 40 or 72 registers, some loops over models store a word once and load it once; older
# releases spill some registers of the last, short tile.
MOST_STACK = 8 if RELEASE >= (3, 9) else 16


class Target:
    """A driver of a GPU that is not there."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@dataclass
class Code:
    """What the gates look at."""

    name: str
    registers: int
    stack: int
    local: int
    instructions: collections.Counter[str]
    ptx: collections.Counter[str]


@contextmanager
def compiling(capability: int) -> Iterator[dict[str, Any]]:
    """Calls of the cuda backend take CPU tensors, and every launch is only compiled: by name and hash."""
    found: dict[str, Any] = {}
    run, devices, active = JITFunction.run, dispatch.DEVICES["cuda"], driver._active

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        found[f"{kernel.name} {kernel.hash}"] = kernel

    JITFunction.run, dispatch.DEVICES["cuda"] = compile_only, ("cuda", "cpu")
    dispatch.chosen.cache_clear()
    driver.set_active(Target(capability))
    try:
        yield found
    finally:
        JITFunction.run, dispatch.DEVICES["cuda"] = run, devices
        dispatch.chosen.cache_clear()
        driver._active = active


def read(kernel: Any) -> Code:
    """Resources and instructions of a compiled kernel, by the tools in Triton's package."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "kernel.cubin"
        file.write_bytes(kernel.asm["cubin"])
        usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", file], capture_output=True, text=True, check=True)
        listing = subprocess.run([TOOLS / "nvdisasm", "-c", file], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage.stdout + usage.stderr)
    assert found, usage
    # 0 · 0 + |x| is how a magnitude is taken.
    listing = re.sub(r"HFMA2\.\S+ \w+, -RZ\S*, RZ\S*, ", "HABS ", listing)
    machine = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", listing, re.MULTILINE)
    ptx = re.findall(r"^\s*(?:@!?%\w+\s+)?([a-z][\w.]*)\s", kernel.asm["ptx"], re.MULTILINE)
    counters = collections.Counter(machine), collections.Counter(ptx)
    return Code(kernel.name, int(found[1]), int(found[2]), int(found[3]), *counters)


def objections(code: Code) -> list[str]:
    """What is wrong with a kernel's machine code. Those that stream tensors are called _tile; others work on little, or
    transpose: a warp reads numbers that lie together, but each thread its own."""
    found = []
    # A stack that nothing is written to is of vectors of bits, which LLVM makes and takes apart again.
    if code.registers > MOST_REGISTERS:
        found.append(f"{code.registers} registers")
    spills = any(name.startswith(("LDL", "STL")) for name in code.instructions)
    if code.local or (spills and code.stack > MOST_STACK):
        found.append("spills to memory")
    access, what = ("STG", "stores") if code.name == "unpack_bits_tile" else ("LDG", "loads")  # its loads are of bits
    if code.name.endswith("_tile") and not any(i.startswith(access) and ".128" in i for i in code.instructions):
        found.append(f"no 128-bit {what}")
    # A division is made of fused steps, and rounded once all the same: then what the compiler was told counts.
    divides = any(name.startswith("div.rn") for name in code.ptx)
    fused = [name for name in code.ptx if name.startswith("fma")]
    if not divides:
        fused += [name for name in code.instructions if name.startswith(("FFMA", "DFMA", "HFMA2.BF16"))]
    if fused:
        found.append("fused multiplication and addition")
    return found
