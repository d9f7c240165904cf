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
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference.numeric import working_dtype
from . import numeric
from .enqueue import enqueue
from .settings import settings
from .sums import add_blocks, sum_spans

BLOCK = int(numeric.BLOCK.value)  # elements whose float64 sum is formed on its own
HEAD = int(numeric.HEAD.value)
_FLOAT, _INT = struct.Struct("d"), struct.Struct("q")
COLUMNS = 32  # of sums that one program adds up
PAGEABLE = 1 << 16  # bytes
FORMS = 1024  # of launches that are remembered


class Row(NamedTuple):
    """What a launch knows of one tensor. head: at most HEAD − 3 addresses and numbers; fields: K numbers each."""

    elements: int
    head: Sequence[Tensor | float | int | None]
    fields: Sequence[Sequence[Tensor | float | int]] = ()
    sums: Tensor | None = None

    def widened(self, dtype: torch.dtype) -> Row:
        """The same with its models, the first of the fields, in a dtype that holds their values."""
        models = [model.to(dtype) if isinstance(model, Tensor) else model for model in self.fields[0]]
        return self._replace(fields=(models, *self.fields[1:]))

    def numbers(self, first_block: int) -> list[int]:
        head = self.elements, first_block, self.sums, *self.head
        nothing = [0] * (HEAD - len(head))
        return [_number(x) for part in (head, nothing, *self.fields) for x in part]


def _number(x: Tensor | float | int | None) -> int:
    if isinstance(x, float):
        return _INT.unpack(_FLOAT.pack(x))[0]  # type: ignore[no-any-return]
    if isinstance(x, int):
        return x if x < 1 << 63 else x - (1 << 64)
    return 0 if x is None else x.data_ptr()


class Alike(NamedTuple):
    """Jobs that one launch can do: they have tensors of the same dtypes, aligned alike, and the same options."""

    jobs: list[int]
    tensors: list[Tensor]  # of the first
    options: Any


def alike(
    jobs: Sequence[tuple[Any, ...]],
    tensors: Callable[..., Sequence[Tensor | None]],
    options: Callable[..., Hashable] = lambda *_: None,
) -> Iterable[Alike]:
    """The jobs by what they have in common. Those of no elements are left out.

    Jobs are an op's arguments, of which `options` tells what must be equal.
    """
    groups: dict[Hashable, Alike] = {}
    for i, job in enumerate(jobs):
        of_job = tensors(*job)
        present = [t for t in of_job if t is not None]
        if present[0].numel():
            kinds = tuple([t if t is None else t.dtype for t in of_job])
            key = kinds, aligned(present), present[0].device, options(*job)
            if key not in groups:
                groups[key] = Alike([], present, key[3])
            groups[key].jobs.append(i)
    return groups.values()


def aligned(tensors: Iterable[Tensor]) -> bool:
    """Whether every address is one that a 128-bit load may have."""
    return {t.data_ptr() % 16 for t in tensors} <= {0}


Counts = Callable[[], list[int]]


def counted(parts: Sequence[tuple[Sequence[int], Callable[[], Sequence[int]]]], jobs: int) -> Counts:
    """What waits for the numbers of so many jobs: the sums of what parts have found, each of some of them."""

    def wait() -> list[int]:
        found = [0] * jobs
        for own, numbers in parts:
            for i, number in zip(own, numbers(), strict=True):
                found[i] += number
        return found

    return wait


class Launch:
    """Launches an op's kernels over the rows, all of `models` models and of tensors alike."""

    def __init__(
        self,
        op: str,
        rows: Sequence[Row],
        tensors: Sequence[Tensor],
        models: Sequence[Tensor] = (),
        columns: int = 0,
        tiled: bool = False,
    ) -> None:
        """tensors: the inputs and outputs of a row, models among them, whose dtypes and addresses count. columns: how
        many sums every program writes to `partial`, of several tiles. tiled: it has several without sums."""
        self.device, self.count, self.columns = tensors[0].device, len(rows), columns
        kinds, own = tuple([t.dtype for t in tensors]), tuple([t.dtype for t in models])
        even = aligned(tensors)
        if len(set(own)) > 1 and len(own) > settings(max(d.itemsize for d in kinds), op, even).unrolled:
            # What is loaded in a loop has one type. Widening is exact; so many models of several are rare.
            wide = working_dtype(models)
            rows = self.widened = [row.widened(wide) for row in rows]  # kept until they are launched
            kinds, own = (*kinds, wide), (wide,) * len(models)
        span, self.constants = form(op, kinds, own, even, self.count == 1, columns > 0, tiled)
        self.spans = BLOCK // span  # programs a block
        blocks = [-(-row.elements // BLOCK) for row in rows]
        firsts = [0, *accumulate(blocks)]
        self.blocks = firsts[-1]
        self.programs = -(-rows[0].elements // span) if self.count == 1 else self.blocks * self.spans
        numbers = [row.numbers(first) for row, first in zip(rows, firsts, strict=False)]
        self.width = len(numbers[0]) + len(numbers[0]) % 2  # so that what follows the rows is aligned as they are
        gap = [0] * (self.width - len(numbers[0]))
        table = array("q", [x for row in numbers for x in (*row, *gap)])
        if self.count > 1:
            table.extend([i for i, count in enumerate(blocks) for _ in range(count)])
        self.table = upload(torch.frombuffer(table, dtype=torch.int64), self.device)

    @functools.cached_property
    def partial(self) -> Tensor:
        """float64 [programs, columns]: every program writes its sums, those too that are beyond their tensor's end."""
        return torch.empty(self.programs, self.columns, dtype=torch.float64, device=self.device)

    def __call__(self, kernel: Any, *arguments: Tensor | int, **constants: Any) -> None:
        """One launch of kernel(table, owners, width, *arguments, …)."""
        owners = self.table[self.count * self.width :] if self.count > 1 else self.table
        with on_device(self.table):
            enqueue(
                kernel, (self.programs, 1, 1), self.table, owners, self.width, *arguments,
                **self.constants, **constants,
            )  # fmt: skip

    @property
    def counts(self) -> Tensor:
        """int64 [rows]: what a kernel has counted in place of the address of sums, if rows have none."""
        return self.table.as_strided((self.count,), (self.width,), 2)

    def add(self, peaks: int | None = None) -> None:
        """Add partial sums to each row's sums, block by block in order; from column `peaks` on they are maxima."""
        count = self.columns
        columns = min(COLUMNS, 1 << (count - 1).bit_length())
        groups = -(-count // columns)
        blocks = self.partial.new_empty(groups, self.blocks, columns)
        peaks = count if peaks is None else peaks
        with on_device(self.table):
            enqueue(
                sum_spans, (self.blocks, groups, 1), self.partial, blocks, self.programs, count, peaks,
                SPANS=self.spans, COLUMNS=columns, num_warps=1,
            )  # fmt: skip
            enqueue(
                add_blocks, (self.count, groups, 1), self.table, self.width, blocks, self.blocks, count, peaks,
                PEAKS=peaks < count, COLUMNS=columns, num_warps=1,
            )  # fmt: skip


@functools.lru_cache(maxsize=FORMS)
def form(
    op: str,
    tensors: tuple[torch.dtype, ...],
    models: tuple[torch.dtype, ...],
    aligned: bool,
    single: bool,
    summed: bool,
    tiled: bool,
) -> tuple[int, dict[str, Any]]:
    """How many elements a program has, and what its kernel is compiled for; by the settings when it is first asked."""
    sizes = [dtype.itemsize for dtype in tensors]
    chosen = settings(max(sizes), op, aligned)
    tile, warps, tiles = chosen.tile, chosen.warps, 1
    constants: dict[str, Any] = {"ALIGNED": aligned, "SINGLE": single, "TILE": tile, "num_warps": warps}
    if models:
        unrolled = len(models) <= chosen.unrolled
        constants |= {"K": len(models) if unrolled else 0, "MODELS": models if unrolled else models[:1]}
    if summed or tiled:
        tiles = constants["TILES"] = chosen.tiles
    if summed:
        constants["LANES"] = min(16 // min(sizes), tile // (32 * warps))
    return tile * tiles, constants


def working(tensors: Iterable[Tensor | None]) -> torch.dtype:
    """What arithmetic is done in."""
    return working_dtype([t for t in tensors if t is not None])


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
    if release < (3, 6):
        return f"Triton {version} is too old for these kernels; install 3.6 or newer"
    if capability >= (10, 0) and release < (3, 9):
        return f"Triton {version} fuses multiplication and addition on sm_{capability[0]}{capability[1]}; install 3.9"
    if capability < (8, 0):
        return f"sm_{capability[0]}{capability[1]} has no bfloat16; sm_80 is the least"
    return None


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """The tensor's GPU, made current; nothing in the interpreter."""
    # A number: to make one of torch's devices takes longer than all the rest.
    return torch.cuda.device(tensor.get_device()) if tensor.is_cuda else nullcontext()
