"""SCE: select, calculate, erase (Wan et al. 2024, FuseChat 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from . import _select
from ._declaration import Block, Method, Pass, Statistics, Subject, exact

if TYPE_CHECKING:
    from torch import Tensor

    from ..ops import Kept, Varied


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
        held = _select.held(subject.numel) + len(models) * _select.SLAB if self.select_topk < 1 else 0
        held *= 8 if wide else 4
        return (Pass(self.merge, writes=("merged",), prepare=self.prepare, held=held, by_torch=True),)

    def prepare(self, block: Block, _: Sequence[Statistics]) -> Prepared:
        import torch

        from .. import ops

        base, models = block.base, block.models
        assert base is not None
        found = Prepared([])
        if self.select_topk < 1:
            spread, nonzero = variance(base, models)
            rank = int(exact(self.select_topk) * nonzero)
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
    step = min(_select.at_a_time(base), base.numel())
    taus = base.new_empty(len(models), step, dtype=ops.working_dtype([base, *models]))  # new memory would cost more
    for own in _select.slabs(base):
        kept, pieces = found.kept(own.start, own.stop - own.start, 1), [tau[: own.stop - own.start] for tau in taus]
        lead = widened(base[own], models)
        for model, piece in zip(models, pieces, strict=True):
            ops.combine(lead, [model[own]], kept=kept, as_delta=True, out=piece)
        energy += ops.inner_products(pieces[0], pieces).norms
    return energy


def variance(base: Tensor, models: Sequence[Tensor]) -> Varied:
    """The variance of task vectors over models, in the working type; 0 for one that is not finite."""
    from .. import ops
    from ..ops.memory import scratch

    found, nonzero = scratch(base, ops.working_dtype([base, *models])), 0
    for own in _select.slabs(base):
        nonzero += ops.variance(base[own], [model[own] for model in models], out=found[own]).nonzero
    return ops.Varied(found, nonzero)
