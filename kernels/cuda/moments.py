"""Per-model statistics of task vectors: magnitudes, means, energies, peaks, and non-finite elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, Row, alike, working
from .numeric import load, place, pointer, task_vector
from .sums import by_lanes, put_sum, whole_tiles, zeros


@triton.jit
def _with_model(tau, found, k, ALIGNED: tl.constexpr, LANES: tl.constexpr):
    """The five vectors of model k, this tile's τ among them."""
    # To compare with infinity instead takes an instruction more: LLVM turns that into a test of bits.
    FINITE: tl.constexpr = 1.7976931348623157e308 if tau.dtype == tl.float64 else 3.4028234663852886e38  # noqa: N806
    size = tl.abs(tau)
    wide = by_lanes(tau.to(tl.float64), ALIGNED, LANES)
    peak = tl.max(by_lanes(size, ALIGNED, LANES), 1)  # of other than NaN, and NaN where there is nothing else
    bad = by_lanes(((size <= FINITE) == 0).to(tl.int32), ALIGNED, LANES)
    return (
        found[5 * k] + tl.sum(tl.abs(wide), 1),
        found[5 * k + 1] + tl.sum(wide, 1),
        found[5 * k + 2] + tl.sum(wide * wide, 1),
        tl.where(peak > found[5 * k + 3], peak, found[5 * k + 3]),
        found[5 * k + 4] + tl.sum(bad, 1),
    )


@triton.jit
def _tile(
    row, first, found, start, n, FULL: tl.constexpr, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
    ALIGNED: tl.constexpr, TILE: tl.constexpr, LANES: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """What has been found, five vectors a model, and this tile's: Σ|τ|, Στ, Στ², the peak, the count of non-finite."""
    offsets = start + tl.arange(0, TILE)
    theta = load(pointer(row + 3, BASE, ALIGNED), offsets, n, FULL, WORKING)
    taus, after = (), ()
    for k in tl.static_range(K):  # all are on their way before the first is needed
        taus = taus + (task_vector(row, first + k, theta, offsets, n, FULL, MODELS[k], ALIGNED, WORKING),)
    for k in tl.static_range(K):
        after = after + _with_model(taus[k], found, k, ALIGNED, LANES)
    return after


@triton.jit
def _span(
    row, first, models, sums, start, n, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
    ALIGNED: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr, LANES: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """All tiles' sums of K models, from the first on."""
    found = ()
    for _ in tl.static_range(K):
        found = found + zeros(3, tl.float64, TILE, LANES) + zeros(1, WORKING, TILE, LANES)
        found = found + zeros(1, tl.int32, TILE, LANES)
    whole, stop = whole_tiles(start, n, TILE, TILES)
    for begin in range(start, whole, TILE):
        found = _tile(row, first, found, begin, n, True, K, MODELS, BASE, ALIGNED, TILE, LANES, WORKING)
    for begin in range(whole, stop, TILE):
        found = _tile(row, first, found, begin, n, False, K, MODELS, BASE, ALIGNED, TILE, LANES, WORKING)
    nonfinite = pointer(row + 4, tl.int64, False)
    for k in tl.static_range(K):
        for i in tl.static_range(3):
            put_sum(sums + i * models + first + k, found[5 * k + i])
        tl.store(sums + 3 * models + first + k, tl.max(found[5 * k + 3], 0).to(tl.float64))
        bad = tl.sum(found[5 * k + 4], 0).to(tl.int64)
        tl.atomic_add(nonfinite + first + k, bad, mask=bad > 0)


@triton.jit(do_not_specialize=["width", "models"])
def moments_tile(
    table, owners, width, sums, models, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
    ALIGNED: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr, LANES: tl.constexpr,
    WORKING: tl.constexpr,
):  # fmt: skip
    """Row: base, counts of non-finite elements. sums: float64 [programs, 4 models], the last fourth peaks."""
    row, start, n = place(table, owners, width, SINGLE, TILE * TILES)
    own = sums + tl.program_id(0).to(tl.int64) * 4 * models
    if K > 0:
        _span(row, 0, K, own, start, n, K, MODELS, BASE, ALIGNED, TILE, TILES, LANES, WORKING)
    else:
        for k in range(models):  # the base is read again, from the cache
            _span(row, k, models, own, start, n, 1, MODELS, BASE, ALIGNED, TILE, TILES, LANES, WORKING)


def moments(base: Tensor, models: Sequence[Tensor], sums: Tensor, nonfinite: Tensor) -> None:
    moments_many([(base, models, sums, nonfinite)])


def moments_many(jobs: Sequence[tuple[Any, ...]]) -> None:
    """moments of each job's arguments; those of equal dtypes and K take one launch."""
    for group in alike(jobs, lambda base, models, *_: (base, *models)):
        base, *models = group.tensors
        rows = [Row(b.numel(), (b, bad), (m,), sums) for b, m, sums, bad in (jobs[i] for i in group.jobs)]
        launch = Launch("moments", rows, group.tensors, models, columns=4 * len(models))
        launch(
            moments_tile, launch.partial, len(models), BASE=base.dtype, WORKING=working(group.tensors)
        )  # fmt: skip
        launch.add(peaks=3 * len(models))
