"""PCB-Merging: parameter competition balancing (Du et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from . import _select
from ._declaration import Block, Finite, Method, Pass, Statistics, Subject, exact

if TYPE_CHECKING:
    from torch import Tensor

OUTLIERS = 10_000  # of so many elements, one at either end is clamped


class Bounds(NamedTuple):
    """Of a task vector: the magnitudes it is clamped to, and the scores that give no weight and the full one."""

    least: float
    most: float
    low: float = 0.0
    high: float = 0.0


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
        return (Pass(self.merge, writes=("merged",), prepare=self.prepare, held=held, by_torch=True),)

    def prepare(self, block: Block, _: Sequence[Statistics]) -> list[Bounds]:
        import torch

        from .. import ops
        from ..ops.memory import widened

        base, models, numel = block.base, block.models, block.subject.numel
        assert base is not None
        outliers = numel // OUTLIERS
        ends = ops.kth_magnitude(base, models, [[numel - outliers, outliers + 1]] * len(models))
        found = [Bounds(least.magnitude, most.magnitude) for least, most in ends]
        part = numel - int((1 - exact(self.density)) * numel)
        scores = torch.empty_like(base, dtype=ops.working_dtype([base, *models]))
        for k, bounds in enumerate(found if part else ()):
            for own in _select.slabs(base):
                lead = widened(base[own], models)
                total = ops.delta_sum(lead, [model[own] for model in models])
                scores[own] = score(_clamped(lead, models[k][own], bounds), total, len(models), bounds)
            low, high = _select.cuts(scores, [part, 1])
            found[k] = bounds._replace(low=low.magnitude, high=high.magnitude)
        return found

    def merge(self, block: Block, _: Sequence[Statistics]) -> None:
        import torch

        from .. import ops
        from ..ops.memory import widened

        assert block.base is not None
        assert block.merged is not None
        for own in _select.slabs(block.base):
            base, models = widened(block.base[own], block.models), [model[own] for model in block.models]
            total = ops.delta_sum(base, models)
            delta, weight = torch.zeros_like(total), torch.zeros_like(total)
            for model, bounds in zip(models, block.prepared, strict=True):
                tau = _clamped(base, model, bounds)
                share = (score(tau, total, len(models), bounds) - bounds.low).clamp_(min=0)
                share = share.div_(bounds.high - bounds.low) if bounds.high > bounds.low else share.zero_()
                delta += tau.mul_(share)
                weight += share
            delta = torch.where(weight > 0, delta / weight, 0)
            block.nonfinite += int(total.numel() - total.isfinite().sum())
            block.nonfinite += ops.combine(None, [base, delta], [1.0, self.scale], out=block.merged[own]).nonfinite


def _clamped(base: Tensor, model: Tensor, bounds: Bounds) -> Tensor:
    """τ_k with its magnitudes clamped."""
    from .. import ops

    tau = ops.delta_sum(base, [model])
    return tau.abs().clamp_(bounds.least, bounds.most).mul_(tau.sign())


def score(tau: Tensor, total: Tensor, count: int, bounds: Bounds) -> Tensor:
    """What elements score, 0 where that is not positive. tau: τ_k, clamped; total: Σ_j τ_j of `count` models."""
    width = bounds.most - bounds.least
    own = tau.abs().sub_(bounds.least).div_(width) if width > 0 else tau * 0
    return own.square_().mul_(count).exp_().mul_((tau * total).tanh_()).clamp_(min=0).nan_to_num_(0, 0)
