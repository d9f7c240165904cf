"""The Kullback-Leibler divergence of the softmax of a model's row from that of base's, by two readings."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .exponential import exp
from .launch import Launch, Row
from .numeric import number
from .rows import cut, elements_of_rows, load_rows, place_in_rows

LN2, ROOT_HALF = tl.constexpr(math.log(2)), tl.constexpr(0x3FE6_A09E_667F_3BCD)  # the latter's bits
LEAST = tl.constexpr(-1.7976931348623157e308)


@triton.jit
def _exp(x):
    """eˣ for x ≤ 0, nothing below e^−700. Of float64."""
    gone = x < -700.0
    return tl.where(gone, 0.0, exp(tl.where(gone, -700.0, x), tl.float64))


@triton.jit
def _raise(peak, total, x):
    """The largest element yet, and Σ e^(x − largest), of one more each."""
    off = x - peak
    above = off > 0
    e = _exp(tl.where(above, -off, off))
    return tl.where(above, x, peak), tl.where(above, total * e + 1.0, total + e)


@triton.jit
def _put(peaks, totals, place, there, peak, total):
    """Those of a row."""
    most = tl.max(peak, 1)
    tl.store(peaks + place, most, mask=there)
    tl.store(totals + place, tl.sum(total * _exp(peak - most[:, None]), 1), mask=there)


@triton.jit(do_not_specialize=["width", "columns"])
def row_softmax_tile(
    table, owners, width, peaks, totals, columns, BASE: tl.constexpr, MODEL: tl.constexpr, ALIGNED: tl.constexpr,
    EVEN: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Row: base, model. peaks, totals: float64 [parts, 2, rows], of base and the model: m = max x and Σ e^(x − m)."""
    own, rows, columns, start, stop = place_in_rows(table, columns, EVEN, TILE, TILES, WIDTH)
    peak = tl.full([TILE // WIDTH, WIDTH], LEAST, tl.float64)
    total = tl.zeros([TILE // WIDTH, WIDTH], tl.float64)
    peak_q, total_q = peak, total
    for begin in range(start, stop, WIDTH):
        places, there = elements_of_rows(own, rows, columns, begin, WIDTH)
        x = load_rows(table + 4, places, there, MODEL, ALIGNED, tl.float64)
        y = load_rows(table + 3, places, there, BASE, ALIGNED, tl.float64)
        peak, total = _raise(peak, total, tl.where(there, x, float("-inf")))
        peak_q, total_q = _raise(peak_q, total_q, tl.where(there, y, float("-inf")))
    place = start // (WIDTH * TILES) * 2 * rows + own
    _put(peaks, totals, place, own < rows, peak_q, total_q)
    _put(peaks, totals, place + rows, own < rows, peak, total)


@triton.jit
def _term(p, q):
    """p log(p / q) − (p − q). With e for which p / q is between √½ and √2 times 2^e, and q' = 2^e q, the logarithm is
    e log 2 + 2 artanh s, s = (p − q') / (p + q'); what is as large as p − q is left off before anything is rounded."""
    e = ((p / q).to(tl.int64, bitcast=True) - ROOT_HALF) >> 52
    near = q * ((e + 1023) << 52).to(tl.float64, bitcast=True)
    off = p - near
    s = off / (p + near)
    z = s * s
    series = tl.full(p.shape, 1.0 / 19, tl.float64)
    for i in tl.static_range(8):
        series = series * z + 1.0 / (17 - 2 * i)
    return p * (e.to(tl.float64) * LN2) + (q - near) + (s * off + (p + p) * s * z * series)


@triton.jit(do_not_specialize=["width", "columns"])
def row_divergence_tile(
    table, owners, width, peaks, totals, divergences, columns, BASE: tl.constexpr, MODEL: tl.constexpr,
    ALIGNED: tl.constexpr, EVEN: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Row: base, model, epsilon. peaks, totals: float64 [2, rows]; divergences: float64 [parts, rows]."""
    own, rows, columns, start, stop = place_in_rows(table, columns, EVEN, TILE, TILES, WIDTH)
    known, epsilon = own < rows, number(table + 5, tl.float64)
    peak_q = tl.load(peaks + own, mask=known, other=0.0)[:, None]
    peak = tl.load(peaks + rows + own, mask=known, other=0.0)[:, None]
    factor_q = 1.0 / tl.load(totals + own, mask=known, other=1.0)[:, None]
    factor = 1.0 / tl.load(totals + rows + own, mask=known, other=1.0)[:, None]
    found = tl.zeros([TILE // WIDTH, WIDTH], tl.float64)
    for begin in range(start, stop, WIDTH):
        places, there = elements_of_rows(own, rows, columns, begin, WIDTH)
        x = load_rows(table + 4, places, there, MODEL, ALIGNED, tl.float64)
        y = load_rows(table + 3, places, there, BASE, ALIGNED, tl.float64)
        term = _term(_exp(x - peak) * factor + epsilon, _exp(y - peak_q) * factor_q + epsilon)
        found += tl.where(there, term, 0.0)
    tl.store(divergences + start // (WIDTH * TILES) * rows + own, tl.sum(found, 1), mask=known)


def row_divergence(base: Tensor, model: Tensor, columns: int, epsilon: float, divergences: Tensor) -> None:
    if not base.numel():
        return
    launch = Launch("row_divergence", [Row(base.numel(), (base, model, epsilon))], (base, model), tiled=True)
    parts, dtypes = cut(launch, len(divergences), columns), {"BASE": base.dtype, "MODEL": model.dtype}
    peaks = divergences.new_empty(parts, 2, len(divergences))
    totals = torch.empty_like(peaks)
    launch(row_softmax_tile, peaks, totals, columns, **dtypes)
    if parts > 1:
        most = peaks.amax(0)
        peaks, totals = most, (totals * (peaks - most).exp()).sum(0)
    found = divergences if parts == 1 else divergences.new_empty(parts, len(divergences))
    launch(row_divergence_tile, peaks, totals, found, columns, **dtypes)
    if parts > 1:
        torch.sum(found, 0, out=divergences)
    divergences.clamp_(min=0)
