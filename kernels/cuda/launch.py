"""How kernels are launched: over one tensor or many, by a table of addresses and numbers with a row a tensor.

A row is int64: elements, first block of 65 536 (counted over all tensors), address of the sums, then an op's own slots,
up to HEAD in all, then fields of K numbers each, the models' addresses first. Floats are the bits of float64, since of
arguments Triton makes float32. After the rows comes, where there are several, each block's row.
"""

from __future__ import annotations

import functools
import struct
from array import array
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import numeric
from .settings import settings
from .sums import add_blocks, sum_spans

BLOCK = int(numeric.BLOCK.value)  # elements whose float64 sum is formed on its own
HEAD = int(numeric.HEAD.value)
# Multiplication and addition round separately on every backend; later releases of Triton fuse them unless told not to.
OPTIONS = {"enable_fp_fusion": False}
COLUMNS = 32  # of sums that one program adds up
PAGEABLE = 1 << 16  # bytes
TYPES = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


@dataclass(frozen=True)
class Row:
    """What a launch knows of one tensor. head: at most HEAD − 3 addresses and numbers; fields: K numbers each."""

    elements: int
    head: Sequence[Tensor | float | int | None]
    fields: Sequence[Sequence[Tensor | float | int]] = ()
    sums: Tensor | None = None

    def numbers(self, first_block: int) -> list[int]:
        head = [self.elements, first_block, self.sums, *self.head]
        return [*map(_number, head), *[0] * (HEAD - len(head)), *(_number(x) for row in self.fields for x in row)]


def _number(x: Tensor | float | int | None) -> int:
    if isinstance(x, torch.Tensor):
        return x.data_ptr()
    if isinstance(x, float):
        return int.from_bytes(struct.pack("<d", x), "little", signed=True)
    return (x or 0) if (x or 0) < 2**63 else (x or 0) - 2**64


def alike(
    jobs: Sequence[tuple[Any, ...]],
    tensors: Callable[..., Sequence[Tensor | None]],
    options: Callable[..., Hashable] = lambda *_: None,
) -> list[list[int]]:
    """Which of the jobs one launch can do: they have tensors of the same dtypes, aligned alike, and the same options.

    Jobs are an op's arguments, of which `options` tells what must be equal; those of no elements are left out.
    """
    groups: dict[Hashable, list[int]] = {}
    for i, job in enumerate(jobs):
        of_job = tensors(*job)
        present = [t for t in of_job if t is not None]
        if present[0].numel():
            kinds = tuple(t if t is None else t.dtype for t in of_job)
            groups.setdefault((kinds, aligned(present), present[0].device, options(*job)), []).append(i)
    return list(groups.values())


def aligned(tensors: Iterable[Tensor]) -> bool:
    """Whether every address is one that a 128-bit load may have."""
    return all(t.data_ptr() % 16 == 0 for t in tensors)


class Launch:
    """Launches an op's kernels over the rows, all of `models` models and of tensors alike."""

    def __init__(
        self,
        op: str,
        rows: Sequence[Row],
        tensors: Sequence[Tensor],
        models: Sequence[Tensor] = (),
        columns: int = 0,
    ) -> None:
        """tensors: the inputs and outputs of a row, models among them, whose dtypes count. columns: how many sums every
        program writes to `partial`, of several tiles."""
        self.device, self.count = tensors[0].device, len(rows)
        self.settings = settings(max(t.element_size() for t in tensors), op)
        tile, warps, tiles = self.settings.tile, self.settings.warps, 1
        self.constants: dict[str, Any] = {"SINGLE": self.count == 1, "TILE": tile, "num_warps": warps}
        if models:
            # Models of several dtypes are always unrolled: what is loaded in a loop has one type.
            kinds = tuple(TYPES[m.dtype] for m in models)
            unrolled = len(models) <= self.settings.unrolled or len({m.dtype for m in models}) > 1
            self.constants |= {"K": len(models) if unrolled else 0, "MODELS": kinds if unrolled else kinds[:1]}
        if columns:
            tiles, narrowest = self.settings.tiles, min(t.element_size() for t in tensors)
            self.constants |= {"TILES": tiles, "LANES": min(16 // narrowest, tile // (32 * warps))}
        self.spans = BLOCK // (tile * tiles)  # programs a block
        blocks = [triton.cdiv(row.elements, BLOCK) for row in rows]
        firsts = [0, *accumulate(blocks)]
        self.blocks = firsts[-1]
        self.programs = triton.cdiv(rows[0].elements, tile * tiles) if self.count == 1 else self.blocks * self.spans
        numbers = [row.numbers(first) for row, first in zip(rows, firsts, strict=False)]
        self.width = len(numbers[0]) + len(numbers[0]) % 2  # so that what follows the rows is aligned as they are
        flat = [x for row in numbers for x in (*row, *[0] * (self.width - len(row)))]
        if self.count > 1:
            flat += [i for i, count in enumerate(blocks) for _ in range(count)]
        self.table = upload(torch.frombuffer(array("q", flat), dtype=torch.int64), self.device)
        # Every program writes its sums, those too that are beyond the end of their tensor.
        self.partial = torch.empty(self.programs, columns, dtype=torch.float64, device=self.device)

    def __call__(self, kernel: Any, *arguments: Any, **constants: Any) -> None:
        """One launch of kernel(table, owners, width, *arguments, …)."""
        owners = self.table[self.count * self.width :] if self.count > 1 else self.table
        with on_device(self.table):
            kernel[(self.programs,)](
                self.table, owners, self.width, *arguments, **self.constants, **constants, **OPTIONS
            )

    @property
    def counts(self) -> Tensor:
        """int64 [rows]: what a kernel has counted in place of the address of sums, if rows have none."""
        return self.table[: self.count * self.width].view(self.count, self.width)[:, 2]

    def add(self, peaks: int | None = None) -> None:
        """Add partial sums to each row's sums, block by block in order; from column `peaks` on they are maxima."""
        count = self.partial.shape[1]
        columns = min(COLUMNS, triton.next_power_of_2(count))
        groups = triton.cdiv(count, columns)
        blocks = self.partial.new_empty(groups, self.blocks, columns)
        peaks = count if peaks is None else peaks
        with on_device(self.table):
            sum_spans[self.blocks, groups](
                self.partial, blocks, self.programs, count, peaks, SPANS=self.spans, COLUMNS=columns, num_warps=1,
                **OPTIONS,
            )  # fmt: skip
            add_blocks[self.count, groups](
                self.table, self.width, blocks, self.blocks, count, peaks, PEAKS=peaks < count, COLUMNS=columns,
                num_warps=1, **OPTIONS,
            )  # fmt: skip


def working(tensors: Iterable[Tensor | None]) -> Any:
    """The type that arithmetic is done in."""
    return tl.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else tl.float32


def upload(numbers: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, which the host does not wait for."""
    if device.type == "cpu":
        return numbers
    # CUDA takes up to 64 KB from any memory before the call returns, without waiting; pinning costs more than that.
    source = numbers if numbers.nbytes <= PAGEABLE else numbers.pin_memory()
    return source.to(device, non_blocking=True)


def rejection(capability: tuple[int, int], version: str) -> str | None:
    """Why this GPU with this version of Triton would not give the bits of the reference, or None."""
    release = tuple(int(part) for part in version.split(".")[:2])
    if capability >= (10, 0) and release < (3, 9):
        return f"Triton {version} fuses multiplication and addition on sm_{capability[0]}{capability[1]}; install 3.9"
    if capability < (8, 0):
        return f"sm_{capability[0]}{capability[1]} has no bfloat16; sm_80 is the least"
    return None


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """The tensor's GPU, made current after checking it; nothing in the interpreter. Raises RuntimeError."""
    if tensor.device.type != "cuda":
        return nullcontext()
    reason = _reason(tensor.device.index)
    if reason:
        raise RuntimeError(reason)
    return torch.cuda.device(tensor.device)


@functools.cache
def _reason(device: int) -> str | None:
    """As rejection, of one of this process's GPUs."""
    return rejection(torch.cuda.get_device_capability(device), triton.__version__)
