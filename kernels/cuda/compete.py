"""Scores of one model's elements in PCB-Merging."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .competition import score, slope
from .launch import Launch, Row
from .numeric import load, number, place, pointer, store, task_vector, task_vectors


@triton.jit
def _tile(
    row, models, start, n, FULL: tl.constexpr, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
    ALIGNED: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    least, most, own = number(row + 5, WORKING), number(row + 6, WORKING), tl.load(row + 7)
    offsets = start + tl.arange(0, TILE)
    theta = load(pointer(row + 3, BASE, ALIGNED), offsets, n, FULL, WORKING)
    taus, total = task_vectors(row, models, theta, offsets, n, FULL, K, MODELS, ALIGNED, WORKING)
    if K > 0:
        tau = taus[0]
        for k in tl.static_range(1, K):
            tau = tl.where(own == k, taus[k], tau)
    else:  # read again, from the cache
        tau = task_vector(row, own, theta, offsets, n, FULL, MODELS[0], ALIGNED, WORKING)
    _, scored = score(tau, total, models, least, most, slope(least, most, WORKING), WORKING)
    store(pointer(row + 4, WORKING, ALIGNED), offsets, scored, n, FULL)


@triton.jit(do_not_specialize=["width", "models"])
def compete_tile(
    table, owners, width, models, K: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr, ALIGNED: tl.constexpr,
    SINGLE: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """Row: nothing, base, out, least, most, the model's number."""
    row, start, n = place(table, owners, width, SINGLE, TILE)
    if start + TILE <= n:
        _tile(row, models, start, n, True, K, MODELS, BASE, ALIGNED, TILE, WORKING)
    elif start < n:
        _tile(row, models, start, n, False, K, MODELS, BASE, ALIGNED, TILE, WORKING)


def compete(base: Tensor, models: Sequence[Tensor], own: int, least: float, most: float, out: Tensor) -> None:
    if not out.numel():
        return
    row = Row(out.numel(), (base, out, least, most, own), (models,))
    launch = Launch("compete", [row], (base, *models, out), models)
    launch(compete_tile, len(models), BASE=base.dtype, WORKING=out.dtype)
