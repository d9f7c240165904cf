"""EMR-Merging's elect: unified, K packed masks and 2K sums from one reading of global memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .launch import TYPES, Launch, Row, aligned, alike, working
from .numeric import load, place, pointer, store, store_bits, task_vector


@triton.jit
def _put_task(tau, up, magnitude, masks, sums, k, models, start, n, FULL: tl.constexpr, TILE: tl.constexpr):
    """One task's mask, and its two sums of this tile."""
    mask = tl.where(up, tau > 0, tau < 0)
    store_bits(masks + k * ((n + 7) // 8), start, mask, n, FULL, TILE)
    tl.store(sums + k, tl.sum(tl.abs(tau).to(tl.float64), 0))
    tl.store(sums + models + k, tl.sum(tl.where(mask, magnitude, 0.0).to(tl.float64), 0))


@triton.jit
def _tile(
    row, models, sums, start, n, FULL: tl.constexpr, K: tl.constexpr, BASE: tl.constexpr, MODELS: tl.constexpr,
    OUT: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    offsets = start + tl.arange(0, TILE)
    theta = load(pointer(row + 3, BASE, ALIGNED), offsets, n, FULL, WORKING)
    unified, masks = pointer(row + 4, OUT, ALIGNED), pointer(row + 5, tl.uint8, False)
    magnitude = tl.zeros([TILE], WORKING)
    if K > 0:
        taus = ()
        for k in tl.static_range(K):
            taus = taus + (task_vector(row, k, theta, offsets, n, FULL, MODELS[k], ALIGNED, WORKING),)
        total = taus[0]
        for k in tl.static_range(1, K):
            total = total + taus[k]
        up = total > 0
        for k in tl.static_range(K):
            agreeing = tl.where(up, taus[k], -taus[k])
            magnitude = tl.where(agreeing > magnitude, agreeing, magnitude)  # tl.maximum mistreats signed zeros
        store(unified, offsets, tl.where(up, magnitude, 0.0 - magnitude), n, FULL)
        for k in tl.static_range(K):
            _put_task(taus[k], up, magnitude, masks, sums, k, K, start, n, FULL, TILE)
    else:
        total = tl.zeros([TILE], WORKING)
        for k in range(models):
            tau = task_vector(row, k, theta, offsets, n, FULL, MODELS[0], ALIGNED, WORKING)
            total = tl.where(k > 0, total + tau, tau)
        up = total > 0
        for k in range(models):  # read again from the cache: any number of task vectors would not stay in registers
            tau = task_vector(row, k, theta, offsets, n, FULL, MODELS[0], ALIGNED, WORKING)
            agreeing = tl.where(up, tau, -tau)
            magnitude = tl.where(agreeing > magnitude, agreeing, magnitude)
        store(unified, offsets, tl.where(up, magnitude, 0.0 - magnitude), n, FULL)
        for k in range(models):
            tau = task_vector(row, k, theta, offsets, n, FULL, MODELS[0], ALIGNED, WORKING)
            _put_task(tau, up, magnitude, masks, sums, k, models, start, n, FULL, TILE)


@triton.jit(do_not_specialize=["width", "models"])
def elect_tile(
    table, owners, width, sums, models, K: tl.constexpr, BASE: tl.constexpr, MODELS: tl.constexpr, OUT: tl.constexpr,
    ALIGNED: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """Row: base, unified, masks. sums: float64 [programs, 2 models]."""
    row, start, n = place(table, owners, width, SINGLE, TILE)
    own = sums + tl.program_id(0).to(tl.int64) * 2 * models
    if start + TILE <= n:
        _tile(row, models, own, start, n, True, K, BASE, MODELS, OUT, ALIGNED, TILE, WORKING)
    elif start < n:
        _tile(row, models, own, start, n, False, K, BASE, MODELS, OUT, ALIGNED, TILE, WORKING)


def elect(base: Tensor, models: Sequence[Tensor], unified: Tensor, masks: Tensor, sums: Tensor) -> None:
    elect_many([(base, models, unified, masks, sums)])


def elect_many(jobs: Sequence[tuple[Any, ...]]) -> None:
    """elect of each job's arguments; those of equal dtypes and K take one launch."""
    for group in alike(jobs, lambda base, models, unified, *_: (base, *models, unified)):
        base, models, unified, *_ = jobs[group[0]]
        rows = [Row(b.numel(), (b, u, masks), (m,), sums) for b, m, u, masks, sums in (jobs[i] for i in group)]
        launch = Launch("elect", rows, (base, *models, unified), models)
        partial = launch.partial_sums(2 * len(models))
        launch(
            elect_tile, partial, len(models), BASE=TYPES[base.dtype], OUT=TYPES[unified.dtype],
            ALIGNED=aligned((base, *models, unified)), WORKING=working((base, *models)),
        )  # fmt: skip
        launch.add(partial)
