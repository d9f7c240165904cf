"""Per-model statistics of task vectors: magnitudes, means, energies, peaks, and non-finite elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .launch import TYPES, Launch, Row, aligned, alike, working
from .numeric import load, place, pointer, task_vector


@triton.jit
def _put_model(tau, sums, nonfinite, k, models, offsets, n):
    """One model's three sums, peak and count of this tile."""
    wide = tau.to(tl.float64)
    size = tl.abs(wide)
    tl.store(sums + k, tl.sum(size, 0))
    tl.store(sums + models + k, tl.sum(wide, 0))
    tl.store(sums + 2 * models + k, tl.sum(wide * wide, 0))
    tl.store(sums + 3 * models + k, tl.max(tl.where(wide == wide, size, 0.0), 0))
    bad = tl.sum(((size < float("inf")) == 0).to(tl.int32), 0).to(tl.int64)
    tl.atomic_add(nonfinite + k, bad, mask=bad > 0)


@triton.jit
def _tile(
    row, models, sums, start, n, FULL: tl.constexpr, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
    ALIGNED: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    offsets = start + tl.arange(0, TILE)
    theta = load(pointer(row + 3, BASE, ALIGNED), offsets, n, FULL, WORKING)
    nonfinite = pointer(row + 4, tl.int64, False)
    if K > 0:
        taus = ()
        for k in tl.static_range(K):  # all are on their way before the first is needed
            taus = taus + (task_vector(row, k, theta, offsets, n, FULL, MODELS[k], ALIGNED, WORKING),)
        for k in tl.static_range(K):
            _put_model(taus[k], sums, nonfinite, k, K, offsets, n)
    else:
        for k in range(models):
            tau = task_vector(row, k, theta, offsets, n, FULL, MODELS[0], ALIGNED, WORKING)
            _put_model(tau, sums, nonfinite, k, models, offsets, n)


@triton.jit(do_not_specialize=["width", "models"])
def moments_tile(
    table, owners, width, sums, models, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
    ALIGNED: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """Row: base, counts of non-finite elements. sums: float64 [programs, 4 models], the last fourth peaks."""
    row, start, n = place(table, owners, width, SINGLE, TILE)
    own = sums + tl.program_id(0).to(tl.int64) * 4 * models
    if start + TILE <= n:
        _tile(row, models, own, start, n, True, K, MODELS, BASE, ALIGNED, TILE, WORKING)
    elif start < n:
        _tile(row, models, own, start, n, False, K, MODELS, BASE, ALIGNED, TILE, WORKING)


def moments(base: Tensor, models: Sequence[Tensor], sums: Tensor, nonfinite: Tensor) -> None:
    moments_many([(base, models, sums, nonfinite)])


def moments_many(jobs: Sequence[tuple[Any, ...]]) -> None:
    """moments of each job's arguments; those of equal dtypes and K take one launch."""
    for group in alike(jobs, lambda base, models, *_: (base, *models)):
        base, models, *_ = jobs[group[0]]
        rows = [Row(b.numel(), (b, bad), (m,), sums) for b, m, sums, bad in (jobs[i] for i in group)]
        launch = Launch("moments", rows, (base, *models), models)
        partial = launch.partial_sums(4 * len(models))
        launch(
            moments_tile, partial, len(models), BASE=TYPES[base.dtype], ALIGNED=aligned((base, *models)),
            WORKING=working((base, *models)),
        )  # fmt: skip
        launch.add(partial, peaks=3 * len(models))
