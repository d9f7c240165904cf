"""How much of each task vector a selection keeps."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .kept import Kept, fields, kept_elements, masks, parts
from .launch import TYPES, Launch, Row, aligned, working
from .numeric import load, place, pointer, task_vector


@triton.jit
def _put_model(
    row, k, models, tau, sums, start, n, FULL: tl.constexpr, TRIM: tl.constexpr, DROP: tl.constexpr,
    KEEP: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """One model's two sums of this tile."""
    on = kept_elements(row, k, models, tau, start, n, FULL, TRIM, DROP, KEEP, TILE, WORKING)
    size = tl.abs(tau).to(tl.float64)
    tl.store(sums + k, tl.sum(size, 0))
    tl.store(sums + models + k, tl.sum(tl.where(on, size, 0.0), 0))


@triton.jit
def _tile(
    row, models, sums, start, n, FULL: tl.constexpr, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
    TRIM: tl.constexpr, DROP: tl.constexpr, KEEP: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
    WORKING: tl.constexpr,
):  # fmt: skip
    offsets = start + tl.arange(0, TILE)
    theta = load(pointer(row + 3, BASE, ALIGNED), offsets, n, FULL, WORKING)
    if K > 0:
        taus = ()
        for k in tl.static_range(K):  # all are on their way before the first is needed
            taus = taus + (task_vector(row, k, theta, offsets, n, FULL, MODELS[k], ALIGNED, WORKING),)
        for k in tl.static_range(K):
            _put_model(row, k, K, taus[k], sums, start, n, FULL, TRIM, DROP, KEEP, TILE, WORKING)
    else:
        for k in range(models):
            tau = task_vector(row, k, theta, offsets, n, FULL, MODELS[0], ALIGNED, WORKING)
            _put_model(row, k, models, tau, sums, start, n, FULL, TRIM, DROP, KEEP, TILE, WORKING)


@triton.jit(do_not_specialize=["width", "models"])
def kept_sums_tile(
    table, owners, width, sums, models, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr, TRIM: tl.constexpr,
    DROP: tl.constexpr, KEEP: tl.constexpr, ALIGNED: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr,
    WORKING: tl.constexpr,
):  # fmt: skip
    """Row: base, nothing, keep, offset; two unused fields, then those of kept. sums: float64 [programs, 2 models]."""
    row, start, n = place(table, owners, width, SINGLE, TILE)
    own = sums + tl.program_id(0).to(tl.int64) * 2 * models
    if start + TILE <= n:
        _tile(row, models, own, start, n, True, K, MODELS, BASE, TRIM, DROP, KEEP, ALIGNED, TILE, WORKING)
    elif start < n:
        _tile(row, models, own, start, n, False, K, MODELS, BASE, TRIM, DROP, KEEP, ALIGNED, TILE, WORKING)


def kept_sums(base: Tensor, models: Sequence[Tensor], kept: Kept, offset: int, sums: Tensor) -> None:
    if not base.numel():
        return
    k = len(models)
    unused = [0] * k
    row = Row(base.numel(), (base, None, masks(kept), offset), (models, unused, unused, *fields(kept, k)), sums)
    launch = Launch("kept_sums", [row], (base, *models), models)
    partial = launch.partial_sums(2 * k)
    launch(
        kept_sums_tile, partial, k, BASE=TYPES[base.dtype], **parts(kept),
        ALIGNED=aligned((base, *models)), WORKING=working((base, *models)),
    )  # fmt: skip
    launch.add(partial)
