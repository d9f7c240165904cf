"""How a Triton kernel is launched: what Triton takes tens of microseconds to find again is remembered here."""

from __future__ import annotations

import functools
import subprocess
import threading
from collections.abc import Hashable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import cache, driver

# Multiplication and addition round separately on every backend; later releases of Triton fuse them unless told not to.
OPTIONS = {"enable_fp_fusion": False}
NO_MEMORY = "[CUDA]: out of memory"  # in what Triton raises
TYPES = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}

# What Triton has compiled, and its constants in order, by all that it compiles for.
_compiled: dict[Hashable, tuple[Any, list[Any]]] = {}
_hashing = threading.Lock()


def enqueue(kernel: Any, grid: tuple[int, int, int], first: Tensor, /, *others: Tensor | int, **constants: Any) -> None:
    """kernel[grid](first, *others, **constants), on the current GPU.

    Constants follow the others in the kernel's signature; Triton's options are among them, and torch's dtypes for its.
    Raises torch.OutOfMemoryError where a kernel has no room.
    """
    arguments = first, *others
    key = kernel.fn, first.device, *[_kind(x) for x in arguments], *constants, *constants.values()
    try:
        if found := _compiled.get(key):
            compiled, values = found
            compiled[grid](*arguments, *values)
            return
        named = {name: _typed(value) for name, value in constants.items()}
        with _hashing:  # else it would be made once more
            pass
        compiled = kernel[grid](*arguments, **named, **OPTIONS)
    except RuntimeError as error:
        if NO_MEMORY in str(error):
            raise torch.OutOfMemoryError(str(error)) from None
        raise
    if compiled is not None:  # the interpreter compiles nothing
        _compiled[key] = compiled, [named[name] for name in kernel.arg_names[len(arguments) :]]


@functools.cache
def make_ready() -> None:
    """Have Triton build, where it has not yet, what it launches kernels by, and begin what its first launch would wait
    for: the keys of its cache hold a hash of the compiler, half a gigabyte. Raises RuntimeError where it cannot.
    """
    threading.Thread(target=_hash_compiler, name="fastmerge-hash", daemon=True).start()
    try:
        driver.active.utils  # noqa: B018
    except Exception as error:
        what = (str(error) or type(error).__name__).splitlines()[0]
        raise RuntimeError(
            f"Triton cannot build what it launches kernels by ({what}); install a C compiler and the headers of Python"
        ) from error


@functools.cache
def check_target(capability: tuple[int, int]) -> None:
    """Raise RuntimeError where the assembler that Triton calls has no GPUs of this capability; else a launch would."""
    number = 10 * capability[0] + capability[1]
    try:  # documented nowhere: where a release has it otherwise, its first launch tells
        from triton.backends.nvidia import compiler

        tool, target = compiler.get_ptxas(number), compiler.sm_arch_from_capability(number)
        said = subprocess.run([tool.path, f"--gpu-name={target}"], capture_output=True, text=True, check=False).stderr
    except Exception:
        return
    if "is not defined" in said:
        raise RuntimeError(
            f"Triton {triton.__version__} does not compile for sm_{number}, which its ptxas of CUDA {tool.version} "
            "does not know; install a newer Triton, or a newer PyTorch, which brings one"
        )


def _hash_compiler() -> None:
    with _hashing:
        # Remembered by Triton, which documents it nowhere: where a release has none, its first launch waits.
        getattr(cache, "triton_key", lambda: None)()


def _kind(x: Tensor | int) -> Hashable:
    """What Triton compiles a kernel for, of an argument."""
    if isinstance(x, int):
        return x == 1, x % 16 == 0, -(1 << 31) <= x < 1 << 31
    return x.dtype, x.data_ptr() % 16 == 0


def _typed(constant: Any) -> Any:
    """With Triton's dtypes in place of torch's."""
    if isinstance(constant, tuple):
        return tuple(map(_typed, constant))
    return TYPES[constant] if isinstance(constant, torch.dtype) else constant
