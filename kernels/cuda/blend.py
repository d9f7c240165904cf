"""A sum of task vectors whose weights differ between the rows, or the columns, of a tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, Row, working
from .numeric import HEAD, is_finite, load, pointer, store


@triton.jit
def _groups(position, inner, groups, RUNS: tl.constexpr, TILE: tl.constexpr):
    """Which of a model's weights the elements of a tile have, the first of which is at `position` in its tensor.

    64 bits are divided once a tile. RUNS "long": an inner dimension is no shorter than a tile, which so has two weights
    at most: the first, the second, and the element that is the first to have it. "single": it is of one element, and
    there are as many groups as elements in a tile. Else of any length.
    """
    run = position // inner
    first, following, change = run % groups, 0, 0
    if RUNS == "long":
        group, following = first, tl.where(first + 1 < groups, first + 1, 0)
        change = tl.minimum((run + 1) * inner - position, TILE).to(tl.int32)
    else:
        at, count = tl.arange(0, TILE).to(tl.uint32), groups.to(tl.uint32)
        if RUNS == "single":
            group = first.to(tl.uint32) + at
            group = tl.where(group >= count, group - count, group)
        else:
            within = (position - run * inner).to(tl.uint32) + at
            group = (first.to(tl.uint32) + within // inner.to(tl.uint32)) % count
    return group, following, change


@triton.jit
def _term(
    row, k, theta, weights, groups, owned, offsets, n, FULL: tl.constexpr, ELEMENT: tl.constexpr, BASE: tl.constexpr,
    RUNS: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    tau = load(pointer(row + HEAD + k, ELEMENT, ALIGNED), offsets, n, FULL, WORKING)
    if BASE is not None:
        tau = tau - theta
    group, following, change = owned
    own = weights + k * tl.cast(groups, tl.int64)
    weight = tl.load(own + group)
    if RUNS == "long":
        weight = tl.where(tl.arange(0, TILE) < change, weight, tl.load(own + following))
    return weight.to(WORKING) * tau


@triton.jit
def _tile(
    row, models, inner, groups, start, n, FULL: tl.constexpr, K: tl.constexpr, MODELS: tl.constexpr,
    BASE: tl.constexpr, OUT: tl.constexpr, RUNS: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
    WORKING: tl.constexpr,
):  # fmt: skip
    offsets = start + tl.arange(0, TILE)
    owned = _groups(tl.load(row + 6) + start, tl.cast(inner, tl.int64), tl.cast(groups, tl.int64), RUNS, TILE)
    weights = pointer(row + 5, tl.float32, False)
    theta = tl.zeros([TILE], WORKING)
    if BASE is not None:
        theta = load(pointer(row + 3, BASE, ALIGNED), offsets, n, FULL, WORKING)
    delta = _term(row, 0, theta, weights, groups, owned, offsets, n, FULL, MODELS[0], BASE, RUNS, ALIGNED, TILE,
                  WORKING)  # fmt: skip
    if K > 0:
        for k in tl.static_range(1, K):
            delta = delta + _term(row, k, theta, weights, groups, owned, offsets, n, FULL, MODELS[k], BASE, RUNS,
                                  ALIGNED, TILE, WORKING)  # fmt: skip
    else:
        for k in range(1, models):
            delta = delta + _term(row, k, theta, weights, groups, owned, offsets, n, FULL, MODELS[0], BASE, RUNS,
                                  ALIGNED, TILE, WORKING)  # fmt: skip
    if BASE is not None:
        delta = theta + delta
    store(pointer(row + 4, OUT, ALIGNED), offsets, delta, n, FULL)
    bad = is_finite(delta, OUT) == 0
    if not FULL:
        bad = bad & (offsets < n)
    found = tl.sum(bad.to(tl.int32), 0).to(tl.int64)
    tl.atomic_add(row + 2, found, mask=found > 0)


@triton.jit(do_not_specialize=["width", "models", "inner", "groups"])
def blend_tile(
    table, owners, width, models, inner, groups, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
    OUT: tl.constexpr, RUNS: tl.constexpr, ALIGNED: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr,
    WORKING: tl.constexpr,
):  # fmt: skip
    """Row: the count of non-finite elements, in place of the address of sums, base, out, weights, offset."""
    n = tl.load(table)
    start = tl.program_id(0).to(tl.int64) * TILE
    if start + TILE <= n:
        _tile(table, models, inner, groups, start, n, True, K, MODELS, BASE, OUT, RUNS, ALIGNED, TILE, WORKING)
    elif start < n:
        _tile(table, models, inner, groups, start, n, False, K, MODELS, BASE, OUT, RUNS, ALIGNED, TILE, WORKING)


def blend(
    base: Tensor | None, models: Sequence[Tensor], weights: Tensor, inner: int, offset: int, out: Tensor
) -> int | Callable[[], int]:
    if not out.numel():
        return 0
    tensors = [t for t in (base, *models, out) if t is not None]
    row = Row(out.numel(), (base, out, weights, offset), (models,))
    launch, groups = Launch("blend", [row], tensors, models), weights.shape[1]
    tile = launch.constants["TILE"]
    runs = "long" if inner >= tile else "single" if inner == 1 and groups >= tile else "any"
    launch(
        blend_tile, len(models), inner, groups, BASE=base if base is None else base.dtype, OUT=out.dtype, RUNS=runs,
        WORKING=working((base, *models)),
    )  # fmt: skip
    return lambda: int(launch.counts)
