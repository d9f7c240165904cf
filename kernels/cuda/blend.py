"""A sum of task vectors whose weights differ between the rows, or the columns, of a tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, Row, working
from .numeric import HEAD, is_finite, load, pointer, store


@triton.jit
def _term(
    row, k, theta, weights, groups, group, offsets, n, FULL: tl.constexpr, ELEMENT: tl.constexpr, BASE: tl.constexpr,
    ALIGNED: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    tau = load(pointer(row + HEAD + k, ELEMENT, ALIGNED), offsets, n, FULL, WORKING)
    if BASE is not None:
        tau = tau - theta
    return tl.load(weights + k * tl.cast(groups, tl.int64) + group).to(WORKING) * tau


@triton.jit
def _tile(
    row, models, inner, groups, start, n, FULL: tl.constexpr, K: tl.constexpr, MODELS: tl.constexpr,
    BASE: tl.constexpr, OUT: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    offsets = start + tl.arange(0, TILE)
    group = (tl.load(row + 6) + offsets) // inner % groups
    weights = pointer(row + 5, tl.float32, False)
    theta = tl.zeros([TILE], WORKING)
    if BASE is not None:
        theta = load(pointer(row + 3, BASE, ALIGNED), offsets, n, FULL, WORKING)
    delta = _term(row, 0, theta, weights, groups, group, offsets, n, FULL, MODELS[0], BASE, ALIGNED, WORKING)
    if K > 0:
        for k in tl.static_range(1, K):
            delta = delta + _term(row, k, theta, weights, groups, group, offsets, n, FULL, MODELS[k], BASE, ALIGNED,
                                  WORKING)  # fmt: skip
    else:
        for k in range(1, models):
            delta = delta + _term(row, k, theta, weights, groups, group, offsets, n, FULL, MODELS[0], BASE, ALIGNED,
                                  WORKING)  # fmt: skip
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
    OUT: tl.constexpr, ALIGNED: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """Row: the count of non-finite elements, in place of the address of sums, base, out, weights, offset."""
    n = tl.load(table)
    start = tl.program_id(0).to(tl.int64) * TILE
    if start + TILE <= n:
        _tile(table, models, inner, groups, start, n, True, K, MODELS, BASE, OUT, ALIGNED, TILE, WORKING)
    elif start < n:
        _tile(table, models, inner, groups, start, n, False, K, MODELS, BASE, OUT, ALIGNED, TILE, WORKING)


def blend(
    base: Tensor | None, models: Sequence[Tensor], weights: Tensor, inner: int, offset: int, out: Tensor
) -> int | Callable[[], int]:
    if not out.numel():
        return 0
    tensors = [t for t in (base, *models, out) if t is not None]
    row = Row(out.numel(), (base, out, weights, offset), (models,))
    launch = Launch("blend", [row], tensors, models)
    launch(
        blend_tile, len(models), inner, weights.shape[1], BASE=base if base is None else base.dtype,
        OUT=out.dtype, WORKING=working((base, *models)),
    )  # fmt: skip
    return lambda: int(launch.counts)
