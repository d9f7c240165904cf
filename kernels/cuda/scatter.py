"""Experts' values in place of a tensor's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import triton
import triton.language as tl
from torch import Tensor

from .enqueue import enqueue
from .experts import TILE, bits_of, check, elements, ends_of
from .launch import on_device


@triton.jit
def scatter_block(theta, counts, ends, offsets, values, valid, TILE: tl.constexpr):
    """Of one block; nothing unless all experts are valid."""
    count = tl.load(counts + tl.program_id(0))
    if tl.load(valid) != 0:
        for start in range(0, count, TILE):
            places, index, there = elements(counts, ends, offsets, start, TILE)
            tl.store(theta + index, tl.load(values + places, mask=there), mask=there)


def scatter(theta: Tensor, experts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> bool:
    run, valid = _ready(theta, experts)
    run()
    return bool(valid)


def scattering(jobs: Sequence[tuple[Tensor, Sequence[tuple[Tensor, Tensor, Tensor]]]]) -> Callable[[], None] | None:
    """scatter of each job, made ready: what is returned launches, without allocating or waiting. None: one is unfit."""
    ready = [_ready(theta, experts) for theta, experts in jobs]
    if not all(bool(valid) for _, valid in ready):
        return None

    def run() -> None:
        for launch, _ in ready:
            launch()

    return run


def _ready(theta: Tensor, experts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Callable[[], None], Tensor]:
    """The launches, of which none changes anything unless all experts fit; and whether they do."""
    valid = check(theta.numel(), [(counts, offsets) for counts, offsets, _ in experts], theta)
    launches = [
        (counts.numel(), (bits_of(theta), counts, ends_of(counts), offsets, bits_of(values), valid))
        for counts, offsets, values in experts
        if theta.numel() and offsets.numel()
    ]

    def run() -> None:
        for blocks, arguments in launches:
            with on_device(theta):
                enqueue(scatter_block, (blocks, 1, 1), *arguments, TILE=TILE)

    return run, valid
