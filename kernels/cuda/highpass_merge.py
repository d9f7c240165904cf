"""FR-Merging's filter and merge in two sweeps over the rows, with a few columns transformed in between.

As in the native backend: v = Σ_k w_k · τ_k of a block of rows is transformed along the rows, and the plan's columns are
kept; those are transformed, filtered and transformed back; then a block's rows, to which v and base are added.

A block is what the cache of a GPU holds: what a step leaves the next one reads there. Transforms are cuFFT's, through
torch, which keeps its plans and gives them memory of its own allocator. Every plan is for a full block, the last one
padded: there is one a length, its memory is bounded however large the prime factors, and a row's bits do not depend on
how many others are transformed with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.numeric import working_dtype
from ..reference.spectrum import Bins, plan
from .delta_sum import delta_sum
from .launch import OPTIONS, on_device
from .numeric import load, narrow, store, widen
from .settings import settings

BLOCK = 1 << 21  # elements worked on together: with their spectrum 16 MiB in float32


@triton.jit
def _finish(
    base, v, filtered, scale, out, bad, n, start, PARTS: tl.constexpr, SCALED: tl.constexpr, BASE: tl.constexpr,
    FULL: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    offsets = start + tl.arange(0, TILE)
    if PARTS == "filtered":
        d = load(filtered, offsets, n, FULL, WORKING)
    else:
        d = load(v, offsets, n, FULL, WORKING)
        if PARTS == "both":
            d = d + load(filtered, offsets, n, FULL, WORKING)
    if SCALED:
        d = tl.load(scale).to(WORKING) * d
    if BASE:
        d = load(base, offsets, n, FULL, WORKING) + d
    store(out, offsets, d, n, FULL)
    finite = tl.abs(widen(narrow(d, out.dtype.element_ty), WORKING)) < float("inf")
    tl.store(bad + tl.program_id(0), tl.sum(tl.where(finite, 0, 1), 0))


@triton.jit
def finish_tile(
    base, v, filtered, scale, out, bad, n, PARTS: tl.constexpr, SCALED: tl.constexpr, BASE: tl.constexpr,
    TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """out = base + scale · d, d being v, what comes back filtered, or the sum of both; bad: non-finite ones, a tile."""
    start = tl.program_id(0).to(tl.int64) * TILE
    if start + TILE <= n:
        _finish(base, v, filtered, scale, out, bad, n, start, PARTS, SCALED, BASE, True, TILE, WORKING)
    else:
        _finish(base, v, filtered, scale, out, bad, n, start, PARTS, SCALED, BASE, False, TILE, WORKING)


def highpass_merge(
    base: Tensor | None,
    models: Sequence[Tensor],
    weights: Sequence[float],
    convention: str,
    limit: int,
    scale: float,
    as_delta: bool,
    out: Tensor,
) -> int:
    """As the reference. Without a base τ_k is θ_k itself, and out the delta."""
    return Filtered(base, models, weights, convention, limit).write(0, scale, as_delta, out.view(-1))


class Filtered:
    """As the reference's. Small matrices go through in groups, of which the last one begun keeps its panel."""

    def __init__(
        self,
        base: Tensor | None,
        models: Sequence[Tensor],
        weights: Sequence[float],
        convention: str,
        limit: int,
        each: bool = False,
    ) -> None:
        self.inputs = base, models, convention, limit
        self.models = [model.view(-1) for model in models]
        self.base = None if base is None else base.view(-1)
        self.real = working_dtype([*models, *([] if base is None else [base])])
        self.device = models[0].device
        _, h, w = models[0].shape
        self.h, self.w, self.n = h, w, models[0].numel()
        bins = Bins(h, w, convention, limit)
        self.plan = plan(bins)
        self.rows = max(1, BLOCK // w)  # of a block
        self.chunk = max(1, BLOCK // h)  # columns transformed together
        self.group = max(1, BLOCK // (h * w)) * h * w  # elements of the matrices that share a panel
        kept = 1.0 if self.plan.subtract or self.plan.columns else 0.0  # times zero what is not finite is still seen
        self.weights = [weight * kept for weight in weights]
        self.factors = self.plan.factors(bins, range(self.plan.columns), self.real).to(self.device)
        self.v = torch.zeros(self.rows, w, dtype=self.real, device=self.device)
        self.spectrum = torch.zeros(self.rows, w // 2 + 1, dtype=self.real.to_complex(), device=self.device)
        self.panel = self.spectrum[:0]
        self.entered = -1  # the group that the panel is of
        self.edge = -1, self.v[:0]  # a block that the last piece cut, transformed back

    def write(self, start: int, scale: float, as_delta: bool, out: Tensor) -> int:
        """As the reference's."""
        stop, bad = start + out.numel(), []
        factor = torch.tensor([scale], dtype=torch.float64, device=self.device)
        with on_device(out):
            for first in range(start // self.group * self.group, stop, self.group):
                last = min(first + self.group, self.n)
                if self.plan.columns:
                    self._enter(first, last)
                for block in range(first, last, self.rows * self.w):
                    begin, end = max(start, block), min(stop, last, block + self.rows * self.w)
                    if begin < end:
                        piece = out[begin - start : end - start]
                        bad.append(
                            self._write(
                                block, min(last, block + self.rows * self.w), begin, factor, scale, as_delta, piece
                            )
                        )
        return int(torch.cat(bad).sum()) if bad else 0

    def each_magnitude(self) -> list[float]:
        """As the reference's."""
        base, models, convention, limit = self.inputs
        assert base is not None
        return self.magnitudes(base, models, convention, limit)

    @staticmethod
    def magnitudes(base: Tensor, models: Sequence[Tensor], convention: str, limit: int) -> list[float]:
        """As the reference's."""
        filtered = torch.empty(base.numel(), dtype=working_dtype([base, *models]), device=base.device)
        found = []
        for model in models:
            Filtered(base, [model], [1.0], convention, limit).write(0, 1.0, True, filtered)
            found.append(filtered.abs().sum(dtype=torch.float64))
        return [float(sum) for sum in found]

    def _enter(self, first: int, last: int) -> None:
        """The sweeps of the group of elements first … last that come before its rows can be asked for."""
        if first == self.entered:
            return
        matrices = (last - first) // (self.h * self.w)
        columns = matrices * self.plan.columns
        self.panel = self.spectrum.new_zeros(-(-columns // self.chunk) * self.chunk, self.h)
        self.entered, self.edge = first, (-1, self.v[:0])
        for block in range(first, last, self.rows * self.w):
            rows = self._sum(block, min(last, block + self.rows * self.w))
            kept = torch.fft.rfft(self.v)[:rows, self.plan.slice]
            self._of_block((block - first) // self.w, rows, columns).copy_(self._by_matrix(kept))
        chunks = self.panel.split(self.chunk)
        for chunk in chunks:
            chunk.copy_(torch.fft.fft(chunk))
        panel = torch.view_as_real(self.panel[:columns]).view(matrices, self.plan.columns, self.h, 2)
        panel *= self.factors[:, :, None]
        for chunk in chunks:
            chunk.copy_(torch.fft.ifft(chunk, norm="forward"))

    def _sum(self, start: int, stop: int) -> int:
        """v of the elements start … stop; returns how many rows that are."""
        base = None if self.base is None else self.base[start:stop]
        delta_sum(base, [model[start:stop] for model in self.models], self.weights, self.v.view(-1)[: stop - start])
        return (stop - start) // self.w

    def _of_block(self, row: int, rows: int, columns: int) -> Tensor:
        """The panel's part that rows of the group fill: [matrices, rows of a matrix, columns]."""
        if row % self.h + rows <= self.h:  # of one matrix
            matrix = row // self.h * self.plan.columns
            part = self.panel[matrix : matrix + self.plan.columns, row % self.h : row % self.h + rows]
            return part.t().unsqueeze(0)
        return self.panel[:columns].view(-1, self.plan.columns, self.h).transpose(1, 2)

    def _by_matrix(self, rows: Tensor) -> Tensor:
        """Rows of whole matrices, or of a part of one, apart by matrix."""
        return rows.view(-1, min(self.h, len(rows)), rows.shape[1])

    def _write(
        self, block: int, stop: int, begin: int, factor: Tensor, scale: float, as_delta: bool, out: Tensor
    ) -> Tensor:
        """Merge the elements from `begin` on of the block of elements block … stop; returns non-finite ones by tile."""
        filtered = None
        if self.plan.columns:
            if self.edge[0] != block:
                self.edge = block, self._back(block, stop)
            filtered = self.edge[1][begin - block : begin - block + out.numel()]
        part = slice(begin, begin + out.numel())
        v = None
        if self.plan.subtract or filtered is None:
            self._sum(begin, begin + out.numel())
            v = self.v.view(-1)[: out.numel()]
        base = None if as_delta or self.base is None else self.base[part]
        return finish_all(base, v, filtered, factor, scale != 1, out)

    def _back(self, block: int, stop: int) -> Tensor:
        """What comes back of a block of rows, 1-D."""
        row, rows = (block - self.entered) // self.w, (stop - block) // self.w
        columns = self.plan.columns * ((min(self.entered + self.group, self.n) - self.entered) // (self.h * self.w))
        kept = self.spectrum[:rows, self.plan.slice]
        self._by_matrix(kept).copy_(self._of_block(row, rows, columns))
        filtered: Tensor = torch.fft.irfft(self.spectrum, n=self.w, norm="forward")
        return filtered.view(-1)


def finish_all(
    base: Tensor | None, v: Tensor | None, filtered: Tensor | None, scale: Tensor, scaled: bool, out: Tensor
) -> Tensor:
    """out = base + scale · (v + filtered), each where given; returns how many are not finite, by tile."""
    given = v if v is not None else filtered
    assert given is not None
    chosen = settings(max(given.element_size(), out.element_size()))
    tiles = triton.cdiv(out.numel(), chosen.tile)
    bad = torch.empty(tiles, dtype=torch.int32, device=out.device)
    finish_tile[(tiles,)](
        given if base is None else base,
        given if v is None else v,
        given if filtered is None else filtered,
        scale,
        out,
        bad,
        out.numel(),
        PARTS="filtered" if v is None else "v" if filtered is None else "both",
        SCALED=scaled,
        BASE=base is not None,
        TILE=chosen.tile,
        WORKING=tl.float64 if given.dtype == torch.float64 else tl.float32,
        num_warps=chosen.warps,
        **OPTIONS,
    )
    return bad
