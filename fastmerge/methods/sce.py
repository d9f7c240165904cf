"""SCE: select, calculate, erase (Wan et al. 2024, FuseChat 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from . import _select
from ._declaration import Block, Method, Pass, Statistics, Subject, exact

if TYPE_CHECKING:
    from torch import Tensor

    from ..ops import Kept


class Prepared(NamedTuple):
    """The models' weights; and where not all is selected, which elements are, packed."""

    weights: list[float]
    selected: Tensor | None = None

    def kept(self, start: int, numel: int, models: int) -> Kept | None:
        """What takes part of `numel` elements from `start` on; None: all."""
        from ..ops import Kept

        if self.selected is None:
            return None
        return Kept(keep=_select.part(self.selected, start, numel).expand(models, -1))


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

    select_topk: float = Field(default=1.0, ge=0, le=1, description="fraction of elements that is selected by variance")

    def passes(self, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        return (Pass(self.merge, writes=("merged",), prepare=self.prepare),)

    def passes_on(self, subject: Subject, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        held = (3 * _select.SLAB + (_select.held(subject.numel) if self.select_topk < 1 else 0)) * (8 if wide else 4)
        return (Pass(self.merge, writes=("merged",), prepare=self.prepare, held=held, by_torch=True),)

    def prepare(self, block: Block, _: Sequence[Statistics]) -> Prepared:
        import torch

        from .. import ops

        base, models = block.base, block.models
        assert base is not None
        found = Prepared([])
        if self.select_topk < 1:
            spread = variance(base, models)
            rank = int(exact(self.select_topk) * int(spread.count_nonzero()))
            (cut,) = _select.cuts(spread, [rank])
            found = Prepared([], _select.packed(base, lambda own: _select.above(spread[own], cut, own.start)))
        energy = ops.moments(base, models).energy if found.selected is None else _energy(base, models, found)
        shares = (energy / energy.sum() if energy.sum() > 0 else torch.full_like(energy, 1 / len(models))).float()
        return found._replace(weights=shares.tolist())

    def merge(self, block: Block, _: Sequence[Statistics]) -> None:
        from .. import ops

        assert block.base is not None
        kept = block.prepared.kept(block.start, block.base.numel(), len(block.models))
        merged = ops.combine(
            block.base,
            block.models,
            block.prepared.weights,
            consensus="unweighted",
            merge="weighted_mean",
            kept=kept,
            offset=block.start,
            out=block.merged,
        )
        block.nonfinite += merged.nonfinite


def _energy(base: Tensor, models: Sequence[Tensor], found: Prepared) -> Tensor:
    """Σ τ_k² of what is selected, float64 [K]."""
    import torch

    from .. import ops
    from ..ops.memory import widened

    energy = torch.zeros(len(models), dtype=torch.float64, device=base.device)
    wide = ops.working_dtype([base, *models])
    for own in _select.slabs(base):
        kept, lead = found.kept(own.start, own.stop - own.start, 1), widened(base[own], models)
        for k, model in enumerate(models):
            tau = ops.combine(lead, [model[own]], kept=kept, as_delta=True, dtype=wide).merged
            energy[k] += ops.inner_products(tau, [tau]).gradient_norm
    return energy


def variance(base: Tensor, models: Sequence[Tensor]) -> Tensor:
    """The variance of task vectors over models, in the working type; 0 for one that is not finite."""
    import torch

    from .. import ops
    from ..ops.memory import widened

    found = torch.empty_like(base, dtype=ops.working_dtype([base, *models]))
    for own in _select.slabs(base):
        pieces = [model[own] for model in models]
        lead = widened(base[own], models)
        mean = ops.delta_sum(lead, pieces).div_(len(models))
        total = torch.zeros_like(mean)
        for piece in pieces:
            total += ops.delta_sum(lead, [piece]).sub_(mean).square_()
        found[own] = total.div_(len(models)).nan_to_num_(0, 0)
    return found
