"""FR-Merging's filter and merge in two sweeps over the rows, with a few columns transformed in between.

Forward: v = Σ_k w_k · τ_k of a block of rows, and their spectra.
Across: the plan's columns, transformed, multiplied by what is kept of them, and transformed back, where they lie.
Back: the rows of what came back, to which v and base are added.

Most matrices go through in one block. Of larger ones the planned columns are held apart, and v is formed twice. Blocks
are of the shape alone, and each matrix goes through by itself: so its bits depend neither on the pieces that are asked
for nor on what is merged with it.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.numeric import working_dtype
from ..reference.spectrum import Bins, Plan, plan
from . import cufft
from .delta_sum import delta_sum
from .launch import OPTIONS, on_device
from .numeric import load, narrow, store, widen
from .settings import settings

BLOCK = 1 << 27  # elements worked on together: v, its spectrum and what comes back are 512 MiB each in float32
LINE = 16  # complex numbers: rows of spectra begin at multiples of it, which are whole lines of the cache
SHAPES = 256  # of which it is remembered what is kept

planned = functools.lru_cache(maxsize=SHAPES)(plan)


@triton.jit
def _keep(
    panel, reaches, unit, places, x, y, n, stride, first, columns, h, middle, SUBTRACT: tl.constexpr,
    NARROW: tl.constexpr, FULL: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """A tile of which some columns are planned. x: of each number its column in row y, on into the rows that follow."""
    over = (x.to(tl.int32) // stride.to(tl.int32)).to(tl.int64) if NARROW else (x >= stride).to(tl.int64)
    y += over
    column = x - over * stride - first
    here = (column >= 0) & (column < columns)
    far = tl.abs(2 * y - middle)
    mirrored = tl.abs(2 * tl.where(y > 0, h - y, 0) - middle)
    kept = (far <= tl.load(reaches + column, mask=here, other=-1)).to(WORKING)
    kept += (mirrored <= tl.load(reaches + columns + column, mask=here, other=-1)).to(WORKING)
    if SUBTRACT:
        kept -= 2
    value = load(panel, places, n, FULL, WORKING) * (kept * tl.load(unit))
    store(panel, places, tl.where(here, value, 0.0), n, FULL)


@triton.jit(do_not_specialize=["n", "stride", "first", "columns", "h", "middle"])
def keep_tile(
    panel, reaches, unit, n, stride, first, columns, h, middle, SUBTRACT: tl.constexpr, NARROW: tl.constexpr,
    TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """Multiply the planned columns of a panel [h, stride] of complex numbers by what is kept of them; others become 0.

    reaches: of each planned column and of its mirror image; unit: half of what a bin that is kept is multiplied by.
    NARROW: a line is shorter than a tile.
    """
    start = tl.program_id(0).to(tl.int64) * TILE
    stride, first = stride.to(tl.int64), first.to(tl.int64)
    y = start // 2 // stride
    x = start // 2 - y * stride
    places = start + tl.arange(0, TILE)
    others = (x + TILE // 2 <= stride) & ((x + TILE // 2 <= first) | (x >= first + columns))
    if start + TILE <= n:
        if others:
            tl.store(panel + places, tl.zeros([TILE], WORKING))
        else:
            _keep(panel, reaches, unit, places, x + tl.arange(0, TILE) // 2, y, n, stride, first, columns, h, middle,
                  SUBTRACT, NARROW, True, WORKING)  # fmt: skip
    else:
        _keep(panel, reaches, unit, places, x + tl.arange(0, TILE) // 2, y, n, stride, first, columns, h, middle,
              SUBTRACT, NARROW, False, WORKING)  # fmt: skip


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
        d = scale.to(tl.int64).to(tl.float64, bitcast=True).to(WORKING) * d
    if BASE:
        d = load(base, offsets, n, FULL, WORKING) + d
    store(out, offsets, d, n, FULL)
    finite = tl.abs(widen(narrow(d, out.dtype.element_ty), WORKING)) < float("inf")
    found = tl.sum(((finite == 0) & (offsets < n)).to(tl.int32), 0).to(tl.int64)
    tl.atomic_add(bad, found, mask=found > 0)


@triton.jit(do_not_specialize=["scale", "n"])
def finish_tile(
    base, v, filtered, scale, out, bad, n, PARTS: tl.constexpr, SCALED: tl.constexpr, BASE: tl.constexpr,
    TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """out = base + scale · d, d being v, what comes back filtered, or the sum of both; bad: non-finite ones, added up.

    scale: the bits of a float64, since Triton makes float32 of floats.
    """
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
    """As the reference's. Of each step it holds the last: a block's v, a matrix's panel, a block that came back."""

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
        _, self.h, self.w = models[0].shape
        self.bins = Bins(self.h, self.w, convention, limit)
        self.plan = planned(self.bins)
        self.rows = min(self.h, max(1, BLOCK // self.w))  # of a block
        kept = 1.0 if self.plan.subtract or self.plan.columns else 0.0  # times zero what is not finite is still seen
        self.weights = [weight * kept for weight in weights]
        real = working_dtype([*models, *([] if base is None else [base])])
        self.v = models[0].new_empty(self.rows, self.w, dtype=real)
        if self.plan.columns:
            self.filtered = torch.empty_like(self.v)
            self.spectrum = self._lines(self.rows, self.w // 2 + 1)
            whole = self.rows == self.h
            self.panel = self.spectrum if whole else self._lines(self.h, self.plan.columns)
            self.first = self.plan.first if whole else 0  # planned column of the panel
        self.summed = self.entered = self.returned = -1  # the first elements of those blocks, and of that matrix

    def write(self, start: int, scale: float, as_delta: bool, out: Tensor) -> int:
        """As the reference's."""
        stop, matrix, block = start + out.numel(), self.h * self.w, self.rows * self.w
        base = None if as_delta else self.base
        bad = torch.zeros(1, dtype=torch.int64, device=out.device)
        with on_device(out):
            for first in range(start - start % matrix, stop, matrix):
                for begin in range(first, first + matrix, block):
                    a, b = max(start, begin), min(stop, begin + block, first + matrix)
                    if a < b:
                        v, filtered = (
                            None if t is None else t.view(-1)[a - begin : b - begin] for t in self._parts(first, begin)
                        )
                        own = None if base is None else base[a:b]
                        finish(own, v, filtered, scale, out[a - start : b - start], bad)
        return int(bad)

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

    def _lines(self, rows: int, columns: int) -> Tensor:
        """Memory of complex numbers: [rows, columns or a few more]."""
        return self.v.new_empty(rows, triton.cdiv(columns, LINE) * LINE, dtype=self.v.dtype.to_complex())

    def _spectrum(self, rows: int) -> Tensor:
        return self.spectrum[:rows, : self.w // 2 + 1]

    def _parts(self, matrix: int, block: int) -> tuple[Tensor | None, Tensor | None]:
        """What G(v) of a block's rows is the sum of: v, and what came back. Both by their first elements."""
        filtered = None
        if self.plan.columns:
            if self.returned != block:
                self._enter(matrix)
                self._return(matrix, block)
            filtered = self.filtered
        return self._sum(matrix, block) if self.plan.subtract or filtered is None else None, filtered

    def _sum(self, matrix: int, block: int) -> Tensor:
        """v of a block: [rows, w]."""
        rows = min(self.rows, self.h - (block - matrix) // self.w)
        v = self.v[:rows]
        if self.summed != block:
            part = slice(block, block + rows * self.w)
            base = None if self.base is None else self.base[part]
            delta_sum(base, [model[part] for model in self.models], self.weights, v.view(-1))
            self.summed = block
        return v

    def _enter(self, matrix: int) -> None:
        """Transform the rows of a matrix, and filter its planned columns."""
        if self.entered == matrix:
            return
        columns = self.panel[:, self.first : self.first + self.plan.columns]
        for row in range(0, self.h, self.rows):
            v = self._sum(matrix, matrix + row * self.w)
            cufft.forward(v, self._spectrum(len(v)))
            if self.panel is not self.spectrum:
                columns[row : row + len(v)] = self.spectrum[: len(v), self.plan.slice]
        cufft.columns(columns, cufft.FORWARD)
        keep(self.panel, self.first, self.bins)
        cufft.columns(columns, cufft.INVERSE)
        self.entered = matrix

    def _return(self, matrix: int, block: int) -> None:
        """Transform a block's rows back. That destroys their spectrum, which nobody else needs."""
        row = (block - matrix) // self.w
        rows = min(self.rows, self.h - row)
        if self.panel is not self.spectrum:
            self.spectrum.zero_()
            self.spectrum[:rows, self.plan.slice] = self.panel[row : row + rows, : self.plan.columns]
        cufft.inverse(self._spectrum(rows), self.filtered[:rows])
        self.returned = block


def keep(panel: Tensor, first: int, bins: Bins) -> None:
    """Multiply the planned columns of panel [h, ·], from column `first` on, by their factors; all others become 0."""
    own = planned(bins)
    numbers = torch.view_as_real(panel).view(-1)
    reaches, unit = _reaches(bins, numbers.dtype, numbers.device)
    chosen = settings(numbers.element_size())
    keep_tile[(triton.cdiv(numbers.numel(), chosen.tile),)](
        numbers,
        reaches,
        unit,
        numbers.numel(),
        panel.shape[1],
        first,
        own.columns,
        bins.h,
        bins.middle,
        SUBTRACT=own.subtract,
        NARROW=panel.shape[1] < chosen.tile // 2,
        TILE=chosen.tile,
        WORKING=_working(numbers),
        num_warps=chosen.warps,
        **OPTIONS,
    )


@functools.lru_cache(maxsize=SHAPES)
def _reaches(bins: Bins, real: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """How far the planned columns and their mirror images are kept, [2, columns]; half the factor of a bin that is."""
    own: Plan = planned(bins)
    columns = range(own.first, own.first + own.columns)
    reaches = [[bins.reach(sign * x) for x in columns] for sign in (1, -1)]
    return torch.tensor(reaches, device=device), torch.tensor([0.5 / (bins.h * bins.w)], dtype=real, device=device)


def finish(
    base: Tensor | None, v: Tensor | None, filtered: Tensor | None, scale: float, out: Tensor, bad: Tensor
) -> None:
    """out = base + scale · (v + filtered), each where given; bad: int64 [1], to which non-finite ones are added."""
    given = v if v is not None else filtered
    assert given is not None
    chosen = settings(max(given.element_size(), out.element_size()))
    finish_tile[(triton.cdiv(out.numel(), chosen.tile),)](
        given if base is None else base,
        given if v is None else v,
        given if filtered is None else filtered,
        int.from_bytes(struct.pack("<d", scale), "little", signed=True),
        out,
        bad,
        out.numel(),
        PARTS="filtered" if v is None else "v" if filtered is None else "both",
        SCALED=scale != 1,
        BASE=base is not None,
        TILE=chosen.tile,
        WORKING=_working(given),
        num_warps=chosen.warps,
        **OPTIONS,
    )


def _working(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32
