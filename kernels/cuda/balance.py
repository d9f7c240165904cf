"""PCB-Merging's weighted mean of task vectors, with a count of non-finite results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import triton
import triton.language as tl
from torch import Tensor

from .competition import score, slope
from .launch import Launch, Row, working
from .numeric import HEAD, divide, is_finite, load, number, place, pointer, store, task_vector, task_vectors

Bounds = tuple[float, float, float, float]  # least, most, low, high


@triton.jit
def _shared(row, k, models, tau, total, WORKING: tl.constexpr):
    """What model k has of the full weight, and its τ clamped."""
    own = row + HEAD + models + k
    least, most = number(own, WORKING), number(own + models, WORKING)
    low, high = number(own + 2 * models, WORKING), number(own + 3 * models, WORKING)
    tau, scored = score(tau, total, models, least, most, slope(least, most, WORKING), WORKING)
    return tl.maximum((scored - low) * slope(low, high, WORKING), 0.0), tau


@triton.jit
def _tile(
    row, models, start, n, FULL: tl.constexpr, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
    OUT: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    offsets = start + tl.arange(0, TILE)
    theta = load(pointer(row + 3, BASE, ALIGNED), offsets, n, FULL, WORKING)
    taus, total = task_vectors(row, models, theta, offsets, n, FULL, K, MODELS, ALIGNED, WORKING)
    delta, weight = tl.zeros([TILE], WORKING), tl.zeros([TILE], WORKING)
    if K > 0:
        for k in tl.static_range(K):
            share, tau = _shared(row, k, models, taus[k], total, WORKING)
            delta, weight = delta + share * tau, weight + share
    else:
        for k in range(models):  # read again, from the cache
            tau = task_vector(row, k, theta, offsets, n, FULL, MODELS[0], ALIGNED, WORKING)
            share, tau = _shared(row, k, models, tau, total, WORKING)
            delta, weight = delta + share * tau, weight + share
    # Not by 0: what is no normal number is divided by a subroutine, and the whole warp waits.
    some = weight > 0
    delta = tl.where(some, divide(tl.where(some, delta, 1.0), tl.where(some, weight, 1.0), WORKING), 0.0)
    delta = theta + number(row + 5, WORKING) * delta
    store(pointer(row + 4, OUT, ALIGNED), offsets, delta, n, FULL)
    bad = (is_finite(delta, OUT) & is_finite(total, WORKING)) == 0
    if not FULL:
        bad = bad & (offsets < n)
    found = tl.sum(bad.to(tl.int32), 0).to(tl.int64)
    tl.atomic_add(row + 2, found, mask=found > 0)


@triton.jit(do_not_specialize=["width", "models"])
def balance_tile(
    table, owners, width, models, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr, OUT: tl.constexpr,
    ALIGNED: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """Row: the count of non-finite elements, in place of the address of sums, base, out, scale; after the models least,
    most, low and high of each."""
    row, start, n = place(table, owners, width, SINGLE, TILE)
    if start + TILE <= n:
        _tile(row, models, start, n, True, K, MODELS, BASE, OUT, ALIGNED, TILE, WORKING)
    elif start < n:
        _tile(row, models, start, n, False, K, MODELS, BASE, OUT, ALIGNED, TILE, WORKING)


def balance(
    base: Tensor, models: Sequence[Tensor], bounds: Sequence[Bounds], scale: float, out: Tensor
) -> int | Callable[[], int]:
    if not out.numel():
        return 0
    row = Row(out.numel(), (base, out, scale), (models, *zip(*bounds, strict=True)))
    launch = Launch("balance", [row], (base, *models, out), models)
    launch(balance_tile, len(models), BASE=base.dtype, OUT=out.dtype, WORKING=working((base, *models)))
    return lambda: int(launch.counts)
