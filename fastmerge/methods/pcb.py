"""PCB-Merging: parameter competition balancing (Du et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from . import _select
from ._declaration import Block, Finite, Method, Pass, Statistics, Subject, exact

if TYPE_CHECKING:
    from ..ops import Bounds

OUTLIERS = 10_000  # of so many elements, one at either end is clamped


class PCB(Method):
    """base + scale · Σ_k s_k ⊙ τ_k / Σ_k s_k, s_k from 0 to 1 by what an element scores within and among tasks.

    The score is exp(K · n(|τ_k|)²) · tanh(τ_k · Σ_j τ_j), n bringing a tensor's magnitudes to 0 … 1. Of each tensor the
    `density` highest scores take part; s_k goes from 0 at the least of them to 1 at the highest, and is 0 where a score
    is not positive. The released code has it so of the whole task vector, where this is tensor by tensor; there, scores
    that are not positive compete too, which shows at high densities, and tanh takes what is not clamped. Of 10 000
    elements, the smallest and the largest magnitude are clamped to the next.
    """

    name = "pcb"
    source = "Du et al. 2024, arXiv 2410.02396, Section 3.2, as released"
    per_tensor = frozenset({"density", "scale"})

    density: float = Field(default=0.1, ge=0, le=1, description="fraction of each task vector that takes part")
    scale: Finite = Field(default=1.0, description="λ, the factor of the merged task vector")

    def passes(self, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        return (Pass(self.merge, writes=("merged",), prepare=self.prepare),)

    def passes_on(self, subject: Subject, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        held = (_select.held(subject.numel) + 6 * _select.SLAB) * (8 if wide else 4)
        return (Pass(self.merge, writes=("merged",), prepare=self.prepare, held=held),)

    def prepare(self, block: Block, _: Sequence[Statistics]) -> list[Bounds]:
        from .. import ops
        from ..ops.memory import scratch

        base, models, numel = block.base, block.models, block.subject.numel
        assert base is not None
        outliers = numel // OUTLIERS
        ends = ops.kth_magnitude(base, models, [[numel - outliers, outliers + 1]] * len(models))
        part = numel - int((1 - exact(self.density)) * numel)
        scores = scratch(base, ops.working_dtype([base, *models]))
        found = []
        for k, (least, most) in enumerate(ends):
            bounds = ops.Bounds(least.magnitude, most.magnitude)
            if not all(map(math.isfinite, bounds)):  # of much that is not finite, none takes part
                bounds = ops.Bounds(0, 0)
            elif part:
                for own in _select.slabs(base):
                    pieces = [model[own] for model in models]
                    ops.compete(base[own], pieces, k, least=bounds.least, most=bounds.most, out=scores[own])
                low, high = _select.cuts(scores, [part, 1])
                bounds = bounds._replace(low=low.magnitude, high=high.magnitude)
            found.append(bounds)
        return found

    def merge(self, block: Block, _: Sequence[Statistics]) -> None:
        from .. import ops

        assert block.base is not None
        assert block.merged is not None
        for own in _select.slabs(block.base):
            models = [model[own] for model in block.models]
            merged = ops.balance(block.base[own], models, block.prepared, scale=self.scale, out=block.merged[own])
            block.nonfinite += merged.nonfinite
