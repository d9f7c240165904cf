"""SCE: select, calculate, erase (Wan et al. 2024, FuseChat 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from . import _select
from ._declaration import Block, Method, Pass, Statistics, exact

if TYPE_CHECKING:
    from torch import Tensor

    from ..ops import Cut


class Prepared(NamedTuple):
    """The models' weights, and the cut of what is selected, if not all is."""

    weights: list[float]
    cut: Cut | None


class SCE(Method):
    """base + the mean of what agrees with the sign of Σ τ_k, where the task vectors differ most, weighted by energy.

    Of each tensor: selected are the select_topk of its elements with the largest variance over models, of those where
    it is not zero; a model's weight is its share of the energy Σ τ_k² that is left; at every element, terms of the sign
    that is not the majority's (zero: +) are erased, and the weights of the others divide. mergekit takes equal weights
    where the mean energies sum to less than 1e-6, as those of most fine-tunes do; here only zero energy has them.
    """

    name = "sce"
    source = "Wan et al. 2024, arXiv 2408.07990, Section 3.3"
    per_tensor = frozenset({"select_topk"})

    select_topk: float = Field(1.0, ge=0, le=1, description="fraction of elements that is selected by variance")

    def passes(self, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        held = (len(models) + 3) * _select.SLAB * (8 if wide else 4)
        return (Pass(self.merge, writes=("merged",), prepare=self.prepare, held=held),)

    def prepare(self, block: Block, _: Sequence[Statistics]) -> Prepared:
        import torch

        from .. import ops

        base, models = block.base, block.models
        assert base is not None
        numel = block.subject.numel

        def make(own: slice) -> Tensor:
            return variance(base[own], [model[own] for model in models])

        cut = None
        if self.select_topk < 1:
            wide = ops.working_dtype([base, *models]) == torch.float64
            varying = sum(int((make(own) > 0).sum()) for own in _select.slabs(numel))
            (cut,) = _select.cuts(make, numel, [int(exact(self.select_topk) * varying)], wide)
        energy = torch.zeros(len(models), dtype=torch.float64, device=base.device)
        for own in _select.slabs(numel):
            mask = None if cut is None else _select.above(make(own), cut, own.start)
            for k, model in enumerate(models):
                tau = ops.delta_sum(base[own], [model[own]])
                tau = tau if mask is None else torch.where(mask, tau, 0)
                energy[k] += ops.moments(torch.zeros_like(tau), [tau]).energy[0]
        shares = (energy / energy.sum() if energy.sum() > 0 else torch.full_like(energy, 1 / len(models))).float()
        return Prepared(shares.tolist(), cut)

    def merge(self, block: Block, _: Sequence[Statistics]) -> None:
        from .. import ops

        assert block.base is not None
        weights, cut = block.prepared
        kept = None
        if cut is not None:
            mask = ops.pack_bits(_select.above(variance(block.base, block.models), cut, block.start))
            kept = ops.Kept(keep=mask.expand(len(block.models), -1))
        merged = ops.combine(
            block.base,
            block.models,
            weights,
            consensus="unweighted",
            merge="weighted_mean",
            kept=kept,
            offset=block.start,
            out=block.merged,
        )
        block.nonfinite += merged.nonfinite


def variance(base: Tensor, models: Sequence[Tensor]) -> Tensor:
    """The variance of task vectors over models, in the working type; 0 for one that is not finite."""
    import torch

    from .. import ops

    mean = ops.delta_sum(base, models).div_(len(models))
    total = torch.zeros_like(mean)
    for model in models:
        total += ops.delta_sum(base, [model]).sub_(mean).square_()
    return total.div_(len(models)).nan_to_num_(0, 0)
