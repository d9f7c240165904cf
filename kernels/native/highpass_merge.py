"""FR-Merging's filter and merge in two sweeps over the rows of a matrix, with a few columns transformed in between.

Forward: v = Σ_k w_k · τ_k of a block of rows, transformed along the rows, of which the plan's columns are kept.
Across: those columns are transformed, filtered, and transformed back.
Back: the inverse along a block's rows, and one fused sweep that forms v again, adds what came back, and base.

Neither v nor a full spectrum is ever stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import add_filtered, delta_sum
from .spectrum import Filter, Plan, plan
from .workers import Workers


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
    _, h, w = out.shape
    bins = Filter(h, w, convention, limit)
    planned = plan(bins)
    if not planned.columns:  # all is kept, or all is removed: times zero, so that what is not finite is seen
        terms = list(weights) if planned.subtract else [0.0] * len(models)
        return add_filtered(base, models, terms, None, scale, as_delta, out, out)
    nonfinite = 0
    with Workers() as workers:
        for i, result in enumerate(out):
            under, over = None if base is None else base[i], [m[i] for m in models]
            nonfinite += Merge(under, over, weights, bins, planned, scale, as_delta, result).run(workers)
    return nonfinite


@dataclass
class Merge:
    """Of one matrix. A sweep takes its blocks from an iterator that other threads take from too."""

    base: Tensor | None
    models: Sequence[Tensor]
    weights: Sequence[float]
    bins: Filter
    plan: Plan
    scale: float
    as_delta: bool
    out: Tensor

    def run(self, workers: Workers) -> int:
        wide = any(t.dtype == torch.float64 for t in (*self.models, *([] if self.base is None else [self.base])))
        self.real = torch.float64 if wide else torch.float32
        self.panel = torch.empty(self.plan.columns, self.bins.h, dtype=self.real.to_complex())
        self.kept = slice(self.plan.first, self.plan.first + self.plan.columns)
        rows = range(0, self.bins.h, self.plan.rows)
        workers.share(rows, self.forward)
        workers.share(range(0, self.plan.columns, self.plan.chunk), self.across)
        return workers.share(rows, self.back)

    def rows(self, start: int) -> tuple[slice, Tensor | None, list[Tensor]]:
        """The block of rows from `start`: where it is, base's and the models'."""
        rows = slice(start, min(start + self.plan.rows, self.bins.h))
        return rows, None if self.base is None else self.base[rows], [m[rows] for m in self.models]

    def forward(self, starts: Iterator[int]) -> int:
        v = torch.empty(self.plan.rows, self.bins.w, dtype=self.real)
        for start in starts:
            rows, base, models = self.rows(start)
            block = v[: rows.stop - rows.start]
            delta_sum(base, models, self.weights, block)
            self.panel[:, rows] = torch.fft.rfft(block)[:, self.kept].t()
        return 0

    def across(self, starts: Iterator[int]) -> int:
        for start in starts:
            chunk = self.panel[start : start + self.plan.chunk]
            first = self.plan.first + start
            factors = self.bins.shares(range(first, first + len(chunk)), self.real) - float(self.plan.subtract)
            spectrum = torch.fft.fft(chunk)
            spectrum *= factors / (self.bins.h * self.bins.w)
            chunk.copy_(torch.fft.ifft(spectrum, norm="forward"))
        return 0

    def back(self, starts: Iterator[int]) -> int:
        spectrum = torch.zeros(self.plan.rows, self.bins.w // 2 + 1, dtype=self.panel.dtype)
        nonfinite = 0
        for start in starts:
            rows, base, models = self.rows(start)
            block = spectrum[: rows.stop - rows.start]
            block[:, self.kept] = self.panel[:, rows].contiguous().t()
            filtered = torch.fft.irfft(block, n=self.bins.w, norm="forward")
            terms = (models, self.weights) if self.plan.subtract else ([], [])
            nonfinite += add_filtered(base, *terms, filtered, self.scale, self.as_delta, self.out[rows], self.out)
        return nonfinite
