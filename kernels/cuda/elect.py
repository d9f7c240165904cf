"""EMR-Merging's elect: unified, K packed masks and 2K sums from one reading of global memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, Row, alike, working
from .numeric import load, place, pointer, store, store_bits, task_vector
from .sums import by_lanes, put_sum, whole_tiles, zeros

MOST = tl.constexpr(64)  # models


@triton.jit
def _toward(tau, up):
    """How far a task vector goes where the sum of all goes."""
    return tl.where(up, tau, -tau)


@triton.jit
def _larger(magnitude, agreeing):
    return tl.where(agreeing > magnitude, agreeing, magnitude)  # tl.maximum mistreats signed zeros


@triton.jit
def _put_task(agreeing, size, masks, k, start, n, FULL: tl.constexpr, TILE: tl.constexpr):
    """One task's mask. Returns the terms of its two sums."""
    mask = agreeing > 0
    store_bits(masks + k * ((n + 7) // 8), start, mask, n, FULL, TILE)
    return tl.abs(agreeing).to(tl.float64), tl.where(mask, size, 0.0).to(tl.float64)


@triton.jit
def _unrolled(
    row, found, start, n, FULL: tl.constexpr, K: tl.constexpr, BASE: tl.constexpr, MODELS: tl.constexpr,
    OUT: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, LANES: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """A tile of K task vectors that stay in registers. Returns what has been found, and its own: a task's two sums."""
    offsets = start + tl.arange(0, TILE)
    theta = load(pointer(row + 3, BASE, ALIGNED), offsets, n, FULL, WORKING)
    unified, masks = pointer(row + 4, OUT, ALIGNED), pointer(row + 5, tl.uint8, False)
    taus, after = (), ()
    for k in tl.static_range(K):
        taus = taus + (task_vector(row, k, theta, offsets, n, FULL, MODELS[k], ALIGNED, WORKING),)
    total, magnitude = taus[0], tl.zeros([TILE], WORKING)
    for k in tl.static_range(1, K):
        total = total + taus[k]
    up = total > 0
    agreeing = ()
    for k in tl.static_range(K):
        agreeing = agreeing + (_toward(taus[k], up),)
        magnitude = _larger(magnitude, agreeing[k])
    store(unified, offsets, tl.where(up, magnitude, 0.0 - magnitude), n, FULL)
    size = magnitude.to(tl.float64)
    for k in tl.static_range(K):
        every, kept = _put_task(agreeing[k], size, masks, k, start, n, FULL, TILE)
        after = after + (
            found[2 * k] + tl.sum(by_lanes(every, ALIGNED, LANES), 1),
            found[2 * k + 1] + tl.sum(by_lanes(kept, ALIGNED, LANES), 1),
        )
    return after


@triton.jit
def _looped(
    row, models, every, kept, start, n, FULL: tl.constexpr, BASE: tl.constexpr, ELEMENT: tl.constexpr,
    OUT: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """A tile of any number of task vectors, which are read again from the cache: they would not stay in registers.
    every, kept: float64 [MOST], the tasks' sums, to which the tile's are added."""
    offsets = start + tl.arange(0, TILE)
    theta = load(pointer(row + 3, BASE, ALIGNED), offsets, n, FULL, WORKING)
    unified, masks = pointer(row + 4, OUT, ALIGNED), pointer(row + 5, tl.uint8, False)
    total, magnitude = tl.zeros([TILE], WORKING), tl.zeros([TILE], WORKING)
    for k in range(models):
        tau = task_vector(row, k, theta, offsets, n, FULL, ELEMENT, ALIGNED, WORKING)
        total = tl.where(k > 0, total + tau, tau)
    up = total > 0
    for k in range(models):
        tau = task_vector(row, k, theta, offsets, n, FULL, ELEMENT, ALIGNED, WORKING)
        magnitude = _larger(magnitude, _toward(tau, up))
    store(unified, offsets, tl.where(up, magnitude, 0.0 - magnitude), n, FULL)
    size = magnitude.to(tl.float64)
    for k in range(models):
        tau = task_vector(row, k, theta, offsets, n, FULL, ELEMENT, ALIGNED, WORKING)
        terms = _put_task(_toward(tau, up), size, masks, k, start, n, FULL, TILE)
        own = tl.arange(0, MOST) == k
        every += tl.where(own, tl.sum(terms[0], 0), 0.0)
        kept += tl.where(own, tl.sum(terms[1], 0), 0.0)
    return every, kept


@triton.jit(do_not_specialize=["width", "models"])
def elect_tile(
    table, owners, width, sums, models, K: tl.constexpr, BASE: tl.constexpr, MODELS: tl.constexpr, OUT: tl.constexpr,
    ALIGNED: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr, LANES: tl.constexpr,
    WORKING: tl.constexpr,
):  # fmt: skip
    """Row: base, unified, masks. sums: float64 [programs, 2 models]."""
    row, start, n = place(table, owners, width, SINGLE, TILE * TILES)
    own = sums + tl.program_id(0).to(tl.int64) * 2 * models
    whole, stop = whole_tiles(start, n, TILE, TILES)
    if K > 0:
        found = zeros(2 * K, tl.float64, TILE, LANES)
        for begin in range(start, whole, TILE):
            found = _unrolled(row, found, begin, n, True, K, BASE, MODELS, OUT, ALIGNED, TILE, LANES, WORKING)
        for begin in range(whole, stop, TILE):
            found = _unrolled(row, found, begin, n, False, K, BASE, MODELS, OUT, ALIGNED, TILE, LANES, WORKING)
        for k in tl.static_range(K):
            put_sum(own + k, found[2 * k])
            put_sum(own + K + k, found[2 * k + 1])
    else:
        every, kept = tl.zeros([MOST], tl.float64), tl.zeros([MOST], tl.float64)
        for begin in range(start, whole, TILE):
            every, kept = _looped(row, models, every, kept, begin, n, True, BASE, MODELS[0], OUT, ALIGNED, TILE,
                                  WORKING)  # fmt: skip
        if whole < stop:  # one short tile; as a loop it spills
            every, kept = _looped(row, models, every, kept, whole, n, False, BASE, MODELS[0], OUT, ALIGNED, TILE,
                                  WORKING)  # fmt: skip
        tasks = tl.arange(0, MOST)
        tl.store(own + tasks, every, mask=tasks < models)
        tl.store(own + models + tasks, kept, mask=tasks < models)


def elect(base: Tensor, models: Sequence[Tensor], unified: Tensor, masks: Tensor, sums: Tensor) -> None:
    elect_many([(base, models, unified, masks, sums)])


def elect_many(jobs: Sequence[tuple[Any, ...]]) -> None:
    """elect of each job's arguments; those of equal dtypes and K take one launch."""
    for group in alike(jobs, lambda base, models, unified, *_: (base, *models, unified)):
        base, *models, unified = group.tensors
        rows = [Row(b.numel(), (b, u, masks), (m,), sums) for b, m, u, masks, sums in (jobs[i] for i in group.jobs)]
        launch = Launch("elect", rows, group.tensors, models, columns=2 * len(models))
        launch(
            elect_tile, launch.partial, len(models), BASE=base.dtype, OUT=unified.dtype,
            WORKING=working((base, *models)),
        )  # fmt: skip
        launch.add()
