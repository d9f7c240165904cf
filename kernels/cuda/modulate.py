"""One task's model: base + scale · mask ⊙ unified."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, Row, alike, working
from .numeric import load, load_bits, number, place, pointer, store


@triton.jit
def _tile(
    row, start, n, FULL: tl.constexpr, BASE: tl.constexpr, UNIFIED: tl.constexpr, OUT: tl.constexpr,
    ALIGNED: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    offsets = start + tl.arange(0, TILE)
    theta = load(pointer(row + 3, BASE, ALIGNED), offsets, n, FULL, WORKING)
    unified = load(pointer(row + 4, UNIFIED, ALIGNED), offsets, n, FULL, WORKING)
    on = load_bits(pointer(row + 5, tl.uint8, False), start, n, FULL, TILE) != 0
    delta = number(row + 6, WORKING) * tl.where(on, unified, 0.0)
    store(pointer(row + 7, OUT, ALIGNED), offsets, theta + delta, n, FULL)


@triton.jit(do_not_specialize=["width"])
def modulate_tile(
    table, owners, width, BASE: tl.constexpr, UNIFIED: tl.constexpr, OUT: tl.constexpr, ALIGNED: tl.constexpr,
    SINGLE: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """Row: base, unified, mask, scale, out."""
    row, start, n = place(table, owners, width, SINGLE, TILE)
    if start + TILE <= n:
        _tile(row, start, n, True, BASE, UNIFIED, OUT, ALIGNED, TILE, WORKING)
    elif start < n:
        _tile(row, start, n, False, BASE, UNIFIED, OUT, ALIGNED, TILE, WORKING)


def modulate(base: Tensor, unified: Tensor, mask: Tensor, scale: float, out: Tensor) -> None:
    modulate_many([(base, unified, mask, scale, out)])


def modulate_many(jobs: Sequence[tuple[Any, ...]]) -> None:
    """modulate of each job's arguments; those of equal dtypes take one launch."""
    modulation(jobs)()


def modulation(jobs: Sequence[tuple[Any, ...]]) -> Callable[[], None]:
    """modulate_many made ready: what is returned launches, and neither allocates nor waits."""
    launches = []
    for group in alike(jobs, lambda base, unified, mask, scale, out: (base, unified, out)):
        base, unified, out = group.tensors
        own = [jobs[i] for i in group.jobs]
        constants = {
            "BASE": base.dtype,
            "UNIFIED": unified.dtype,
            "OUT": out.dtype,
            "WORKING": working((base, unified)),
        }
        # The jobs, since the launch has no more than their addresses.
        launches.append((Launch("modulate", [Row(job[0].numel(), job) for job in own], group.tensors), constants, own))

    def run() -> None:
        for launch, constants, _ in launches:
            launch(modulate_tile, **constants)

    return run
