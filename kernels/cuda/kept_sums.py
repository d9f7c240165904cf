"""How much of each task vector a selection keeps."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .kept import Kept, fields, kept_elements, masks, parts, selection, whole_sided
from .launch import Launch, Row, working
from .numeric import load, place, pointer, task_vector
from .sums import by_lanes, put_sum, zeros


@triton.jit
def _tile(
    row, first, read, found, start, n, FULL: tl.constexpr, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
    TRIM: tl.constexpr, DROP: tl.constexpr, KEEP: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
    LANES: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """What has been found, and this tile's: a model's Σ|τ|, of all and of what is kept."""
    offsets = start + tl.arange(0, TILE)
    theta = load(pointer(row + 3, BASE, ALIGNED), offsets, n, FULL, WORKING)
    taus, after = (), ()
    for k in tl.static_range(K):  # all are on their way before the first is needed
        taus = taus + (task_vector(row, first + k, theta, offsets, n, FULL, MODELS[k], ALIGNED, WORKING),)
    for k in tl.static_range(K):
        on = kept_elements(read[k], taus[k], start, n, FULL, FULL, TRIM, DROP, KEEP, TILE)
        size = tl.abs(taus[k]).to(tl.float64)
        after = after + (
            found[2 * k] + tl.sum(by_lanes(size, ALIGNED, LANES), 1),
            found[2 * k + 1] + tl.sum(by_lanes(tl.where(on, size, 0.0), ALIGNED, LANES), 1),
        )
    return after


@triton.jit
def _span(
    row, first, models, sums, start, n, FULL: tl.constexpr, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
    TRIM: tl.constexpr, DROP: tl.constexpr, KEEP: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
    TILES: tl.constexpr, LANES: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """All tiles' sums of K models, from the first on. FULL: all tiles are, and none is divided by a cut."""
    found, read = zeros(2 * K, tl.float64, TILE, LANES), ()
    for k in tl.static_range(K):
        read = read + (selection(row, first + k, models, start, n, FULL, TRIM, DROP, KEEP, WORKING),)
    for begin in range(start, tl.minimum(start + TILE * TILES, n), TILE):
        found = _tile(row, first, read, found, begin, n, FULL, K, MODELS, BASE, TRIM, DROP, KEEP, ALIGNED, TILE, LANES,
                      WORKING)  # fmt: skip
    for k in tl.static_range(K):
        put_sum(sums + first + k, found[2 * k])
        put_sum(sums + models + first + k, found[2 * k + 1])


@triton.jit
def _models(
    row, first, models, sums, start, n, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr, TRIM: tl.constexpr,
    DROP: tl.constexpr, KEEP: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
    LANES: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    if (start + TILE * TILES <= n) & whole_sided(row, first, models, start, K, TRIM, TILE * TILES):
        _span(row, first, models, sums, start, n, True, K, MODELS, BASE, TRIM, DROP, KEEP, ALIGNED, TILE, TILES, LANES,
              WORKING)  # fmt: skip
    else:
        _span(row, first, models, sums, start, n, False, K, MODELS, BASE, TRIM, DROP, KEEP, ALIGNED, TILE, TILES,
              LANES, WORKING)  # fmt: skip


@triton.jit(do_not_specialize=["width", "models"])
def kept_sums_tile(
    table, owners, width, sums, models, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr, TRIM: tl.constexpr,
    DROP: tl.constexpr, KEEP: tl.constexpr, ALIGNED: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr,
    TILES: tl.constexpr, LANES: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """Row: base, nothing, keep, offset; two unused fields, then those of kept. sums: float64 [programs, 2 models]."""
    row, start, n = place(table, owners, width, SINGLE, TILE * TILES)
    own = sums + tl.program_id(0).to(tl.int64) * 2 * models
    if K > 0:
        _models(row, 0, K, own, start, n, K, MODELS, BASE, TRIM, DROP, KEEP, ALIGNED, TILE, TILES, LANES, WORKING)
    else:
        for k in range(models):  # the base is read again, from the cache
            _models(row, k, models, own, start, n, 1, MODELS, BASE, TRIM, DROP, KEEP, ALIGNED, TILE, TILES, LANES,
                    WORKING)  # fmt: skip


def kept_sums(base: Tensor, models: Sequence[Tensor], kept: Kept, offset: int, sums: Tensor) -> None:
    if not base.numel():
        return
    k = len(models)
    unused = [0] * k
    row = Row(base.numel(), (base, None, masks(kept), offset), (models, unused, unused, *fields(kept, k)), sums)
    launch = Launch("kept_sums", [row], (base, *models), models, columns=2 * k)
    launch(
        kept_sums_tile, launch.partial, k, BASE=base.dtype, **parts(kept),
        WORKING=working((base, *models)),
    )  # fmt: skip
    launch.add()
