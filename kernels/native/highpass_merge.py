"""FR-Merging's filter and merge in two sweeps over the rows of a matrix, with a few columns transformed in between.

Forward: v = Σ_k w_k · τ_k of a block of rows, transformed along the rows, of which the plan's columns are kept.
Across: those columns are transformed, filtered, and transformed back.
Back: the inverse along a block's rows, and one fused sweep that forms v again, adds what came back, and base.

Neither v nor a full spectrum is ever stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ..reference.spectrum import Filter, plan
from . import add_filtered, delta_sum
from .workers import Workers

BLOCK = 1 << 19  # elements worked on together


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
    """As the reference's: the back sweep goes over what is asked for, the others over its matrix when it is begun.

    A sweep takes its blocks from an iterator that other threads take from too.
    """

    def __init__(
        self, base: Tensor | None, models: Sequence[Tensor], weights: Sequence[float], convention: str, limit: int
    ) -> None:
        self.base, self.models, self.weights = base, models, weights
        wide = any(t.dtype == torch.float64 for t in (*models, *([] if base is None else [base])))
        self.real = torch.float64 if wide else torch.float32
        _, h, w = models[0].shape
        self.bins = Filter(h, w, convention, limit)
        self.plan = plan(self.bins)
        # Whole cache lines of the panel, and an odd number of them: columns of a block then do not share cache sets.
        self.rows = min(h, 8 * (BLOCK // w // 8 | 1))
        self.chunk = max(1, BLOCK // h)  # columns of the panel
        self.block = self.rows * w  # elements
        self.panel = torch.empty(0)
        self.entered = -1  # the matrix that the panel is of
        self.edge = -1, torch.empty(0)  # a block of rows that the last piece cut, transformed back

    def write(self, start: int, scale: float, as_delta: bool, out: Tensor) -> int:
        """As the reference's."""
        size, stop, nonfinite = self.bins.h * self.bins.w, start + out.numel(), 0
        with Workers() as workers:
            for i in range(start // size, -(-stop // size)):
                begin, end = max(start, i * size), min(stop, (i + 1) * size)
                piece = begin - i * size, end - i * size
                merged = out[begin - start : end - start]
                if not self.plan.columns:
                    nonfinite += self._unfiltered(i, piece, scale, as_delta, merged)
                    continue
                self._enter(i, workers)
                blocks = range(piece[0] // self.block * self.block, piece[1], self.block)
                nonfinite += workers.share(blocks, partial(self._back, i, piece, scale, as_delta, merged))
        return nonfinite

    def _unfiltered(self, i: int, piece: tuple[int, int], scale: float, as_delta: bool, out: Tensor) -> int:
        """All is kept, or all is removed: times zero, so that what is not finite is seen."""
        terms = list(self.weights) if self.plan.subtract else [0.0] * len(self.models)
        base, models = self._elements(i, *piece)
        return add_filtered(base, models, terms, None, scale, as_delta, out, out)

    def _enter(self, i: int, workers: Workers) -> None:
        """The sweeps of matrix i that come before its rows can be asked for."""
        if i == self.entered:
            return
        self.panel = torch.empty(self.plan.columns, self.bins.h, dtype=self.real.to_complex())
        self.entered, self.edge = i, (-1, torch.empty(0))
        workers.share(range(0, self.bins.h * self.bins.w, self.block), partial(self._forward, i))
        workers.share(range(0, self.plan.columns, self.chunk), self._across)

    def _elements(self, i: int, start: int, stop: int) -> tuple[Tensor | None, list[Tensor]]:
        """Base's and the models' elements of matrix i."""
        base = None if self.base is None else self.base[i].view(-1)[start:stop]
        return base, [model[i].view(-1)[start:stop] for model in self.models]

    def _rows(self, start: int) -> slice:
        """The rows of the block that begins at element `start`."""
        first = start // self.bins.w
        return slice(first, min(first + self.rows, self.bins.h))

    def _forward(self, i: int, starts: Iterator[int]) -> int:
        v = torch.empty(self.block, dtype=self.real)
        for start in starts:
            rows = self._rows(start)
            block = v[: (rows.stop - rows.start) * self.bins.w]
            delta_sum(*self._elements(i, start, start + len(block)), self.weights, block)
            self.panel[:, rows] = torch.fft.rfft(block.view(-1, self.bins.w))[:, self.plan.slice].t()
        return 0

    def _across(self, starts: Iterator[int]) -> int:
        for start in starts:
            chunk = self.panel[start : start + self.chunk]
            factors = self.plan.factors(self.bins, range(start, start + len(chunk)), self.real)
            spectrum = torch.fft.fft(chunk)
            spectrum *= factors.to(spectrum.dtype)  # complex by complex is twice as fast as complex by real
            chunk.copy_(torch.fft.ifft(spectrum, norm="forward"))
        return 0

    def _back(
        self, i: int, piece: tuple[int, int], scale: float, as_delta: bool, out: Tensor, starts: Iterator[int]
    ) -> int:
        spectrum = torch.zeros(self.rows, self.bins.w // 2 + 1, dtype=self.panel.dtype)
        edge, nonfinite = self.edge, 0
        for start in starts:
            filtered = edge[1] if start == edge[0] else self._transformed(start, spectrum)
            begin, end = max(start, piece[0]), min(start + len(filtered), piece[1])
            if end < start + len(filtered):
                self.edge = start, filtered
            base, models = self._elements(i, begin, end)
            terms = (models, self.weights) if self.plan.subtract else ([], [])
            merged, part = out[begin - piece[0] : end - piece[0]], filtered[begin - start : end - start]
            nonfinite += add_filtered(base, *terms, part, scale, as_delta, merged, out)
        return nonfinite

    def _transformed(self, start: int, spectrum: Tensor) -> Tensor:
        """What comes back of the block at `start`, 1-D; `spectrum` is zero but for the plan's columns."""
        rows = self._rows(start)
        block = spectrum[: rows.stop - rows.start]
        block[:, self.plan.slice] = self.panel[:, rows].contiguous().t()
        filtered: Tensor = torch.fft.irfft(block, n=self.bins.w, norm="forward")
        return filtered.view(-1)
