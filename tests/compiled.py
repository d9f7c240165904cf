"""What an op launches, compiled without a GPU: the wrappers run, each launch is compiled for a target and collected."""

from __future__ import annotations

import collections
import functools
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from fastmerge.kernels import cuda
from torch.utils._python_dispatch import TorchDispatchMode
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
# Of more than three models all that a thread can have, and then a few words in memory: it is measured, and written into
# settings.json, how much longer a loop over models takes all the same.
MANY, ALL_REGISTERS, MOST_SPILLS = 4, 255, 0.02
# Bytes a thread: to get by with 40, 56 or 72 registers, some loops over models store a word or two and load them again;
# older releases spill some registers of the last, short tile.
MOST_STACK = 16
OFFSETS = {f"arith.{op}" for op in ("muli", "addi", "subi", "extsi")} | {"tt.splat", "tt.broadcast", "tt.expand_dims"}


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
    """What the gates look at. models: how many stay in registers; elements: of a thread."""

    name: str
    models: int
    elements: int
    registers: int
    stack: int
    local: int
    instructions: collections.Counter[str]
    ptx: collections.Counter[str]
    narrow: set[str]  # products of 32 bits that addresses are made of


class Launched(NamedTuple):
    """What was compiled, and the arguments by name, constants and Triton's options among them."""

    kernel: Any
    arguments: Mapping[str, Any]


@contextmanager
def all_sorted() -> Iterator[None]:
    """Rows of any length are ranked without CUDA C++."""
    with patch.object(
        sys.modules["fastmerge.kernels.cuda.rank_drop"], "LONGEST", 0
    ):  # the package's attribute is the op
        yield


@contextmanager
def launching(capability: int, do: Callable[[Any, Sequence[int], dict[str, Any]], None]) -> Iterator[None]:
    """Calls of the cuda backend take CPU tensors. What they launch of Triton's is compiled, and given to `do` with the
    grid and all arguments by name."""
    run, devices, active = JITFunction.run, dispatch.DEVICES["cuda"], driver._active

    def launch(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        do(kernel, grid, dict(zip(self.arg_names, args, strict=False)) | options)

    JITFunction.run, dispatch.DEVICES["cuda"] = launch, ("cuda", "cpu")
    dispatch.chosen.cache_clear()
    driver.set_active(Target(capability))
    try:
        with all_sorted():
            yield
    finally:
        JITFunction.run, dispatch.DEVICES["cuda"] = run, devices
        dispatch.chosen.cache_clear()
        driver._active = active


@contextmanager
def compiling(capability: int) -> Iterator[dict[str, Launched]]:
    """What is launched is only compiled: by name and hash."""
    found: dict[str, Launched] = {}

    def keep(kernel: Any, _: Sequence[int], arguments: dict[str, Any]) -> None:
        found[f"{kernel.name} {kernel.hash}"] = Launched(kernel, arguments)

    with launching(capability, keep):
        yield found


class Nothing(TorchDispatchMode):
    """Lets torch look at parts of tensors, but neither allocate, nor copy, nor wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.is_view:
            return func(*args, **(kwargs or {}))
        raise AssertionError(f"torch was asked for {func}")


def read(launched: Launched) -> Code:
    """Resources and instructions of a compiled kernel."""
    kernel, arguments = launched
    ptx = re.findall(r"^\s*(?:@!?%\w+\s+)?([a-z][\w.]*)\s", kernel.asm["ptx"], re.MULTILINE)
    elements = arguments.get("TILE", 0) // (32 * arguments.get("num_warps", 4))
    resources, machine = taken_apart(kernel.asm["cubin"])
    narrow = narrow_products(kernel.asm["ttir"])
    return Code(kernel.name, arguments.get("K", 1), elements, *resources, machine, collections.Counter(ptx), narrow)


@functools.cache
def taken_apart(cubin: bytes) -> tuple[tuple[int, int, int], collections.Counter[str]]:
    """Registers, stack and local memory of machine code, and its instructions; by the tools in Triton's package."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "kernel.cubin"
        file.write_bytes(cubin)
        usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", file], capture_output=True, text=True, check=True)
        listing = subprocess.run([TOOLS / "nvdisasm", "-c", file], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage.stdout + usage.stderr)
    assert found, usage
    # 0 · 0 + |x| is how a magnitude is taken.
    listing = re.sub(r"HFMA2\.\S+ \w+, -RZ\S*, RZ\S*, ", "HABS ", listing)
    machine = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", listing, re.MULTILINE)
    registers, stack, local = map(int, found.groups())
    return (registers, stack, local), collections.Counter(machine)


def narrow_products(code: str) -> set[str]:
    """The products of two numbers of 32 bits, neither a constant, that an address is counted from."""
    made = {name: (op, rest) for name, op, rest in re.findall(r"^\s*(%\w+) = ([\w.]+) (.*)", code, re.MULTILINE)}
    found, seen = set[str](), set[str]()
    left = [re.findall(r"%\w+", rest)[1] for op, rest in made.values() if op == "tt.addptr"]
    while left:
        name = left.pop()
        op, rest = made.get(name, ("", ""))
        if name in seen or op not in OFFSETS:
            continue
        seen.add(name)
        factors = re.findall(r"%\w+", rest.partition(":")[0])
        constant = any(made.get(own, ("", ""))[0] == "arith.constant" for own in factors)
        if op == "arith.muli" and not constant and re.search(r": (tensor<\d+x)?i32>?", rest):
            found.add(name)
        left += factors
    return found


def objections(code: Code) -> list[str]:
    """What is wrong with a kernel's machine code. Those that stream tensors are called _tile; others work on little, or
    transpose: a warp reads numbers that lie together, but each thread its own."""
    found = []
    if code.registers > (MOST_REGISTERS if code.models < MANY else ALL_REGISTERS):
        found.append(f"{code.registers} registers")
    # A stack that nothing is written to is of vectors of bits, which LLVM makes and takes apart again.
    words = sum(count for name, count in code.instructions.items() if name.startswith(("LDL", "STL")))
    few = code.stack <= MOST_STACK if code.models < MANY else words <= MOST_SPILLS * code.instructions.total()
    if code.local or (words and not few):
        found.append("spills to memory")
    access, what = ("STG", "stores") if code.name == "unpack_bits_tile" else ("LDG", "loads")  # its loads are of bits
    wide = any(name.startswith(access) and ".128" in name for name in code.instructions)
    if code.elements == 4:  # which of 16 bits are 64 together, as the table's numbers are each
        wide = wide or any(name.startswith("ld.global") and ".v2.b32" in name for name in code.ptx)
    if code.name.endswith("_tile") and not wide:
        found.append(f"no 128-bit {what}")
    # A division is made of fused steps, and rounded once all the same: then what the compiler was told counts.
    divides = any(name.startswith("div.rn") for name in code.ptx)
    fused = [name for name in code.ptx if name.startswith("fma")]
    if not divides:
        fused += [name for name in code.instructions if name.startswith(("FFMA", "DFMA", "HFMA2.BF16"))]
    if fused:
        found.append("fused multiplication and addition")
    if code.narrow:
        found.append("an address is counted in 32 bits")
    return found
