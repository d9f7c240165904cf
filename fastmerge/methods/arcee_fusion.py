"""Arcee Fusion: a model's most important changes put into base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import _select
from ._declaration import Block, Method, Pass, Statistics, Subject

if TYPE_CHECKING:
    import torch
    from torch import Tensor

EPSILON = 1e-8  # added to probabilities


class ArceeFusion(Method):
    """The model's weights where their importance reaches median + 1.5 · (third − first quartile), elsewhere base's.

    Importance is |τ| times the Kullback-Leibler divergence of the softmax of the row (the last dimension) from that of
    base's row, in float64. Quartiles are exact, of the whole tensor; mergekit's are those of a random sample of a
    million elements.
    """

    name = "arcee_fusion"
    source = "Arcee AI 2024, as in mergekit"
    counts = (1, 1)

    def passes(self, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        return (Pass(self.merge, writes=("merged",), prepare=self.prepare),)

    def passes_on(self, subject: Subject, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        rows = 4 * 8 * max(_select.SLAB, _columns(subject))
        held = rows + _select.held(subject.numel) * (8 if wide else 4)
        return (Pass(self.merge, writes=("merged",), prepare=self.prepare, held=held, by_torch=True),)

    def prepare(self, block: Block, _: Sequence[Statistics]) -> Tensor:
        """Which elements are the model's, packed."""
        base, (model,) = block.base, block.models
        assert base is not None
        importance = _importance(base, model, _columns(block.subject))
        last = base.numel() - 1
        ranks = [last + 1 - last * quarters // 4 for quarters in (1, 2, 3)]
        first, median, third = (cut.magnitude for cut in _select.cuts(importance, ranks))
        least = least_of(median + 1.5 * (third - first), importance.dtype)
        return _select.packed(base, lambda own: importance[own] >= least)

    def merge(self, block: Block, _: Sequence[Statistics]) -> None:
        from .. import ops

        assert block.base is not None
        kept = ops.Kept(keep=_select.part(block.prepared, block.start, block.base.numel())[None])
        merged = ops.combine(block.base, block.models, kept=kept, offset=block.start, out=block.merged)
        block.nonfinite += merged.nonfinite


def least_of(threshold: float, dtype: torch.dtype) -> float:
    """The smallest number of the type that reaches a threshold."""
    import torch

    near = torch.tensor(threshold, dtype=dtype)
    return float(near if float(near) >= threshold else near.nextafter(torch.tensor(torch.inf, dtype=dtype)))


def _columns(subject: Subject) -> int:
    return subject.shape[-1] if subject.shape else 1


def _importance(base: Tensor, model: Tensor, columns: int) -> Tensor:
    """|τ| · Σ p log(p / q) of the row, in the working type: p the softmax of the model's row, q of base's."""
    from .. import ops
    from ..ops.memory import scratch

    found = scratch(base, ops.working_dtype([base, model]))
    rows = max(1, _select.at_a_time(base) // columns)
    for start in range(0, base.numel(), rows * columns):
        own = slice(start, start + rows * columns)
        divergence = ops.row_divergence(base[own], model[own], columns, epsilon=EPSILON).to(found.dtype)
        tau = ops.delta_sum(base[own], [model[own]], out=found[own]).view(-1, columns)
        tau.abs_().mul_(divergence[:, None]).nan_to_num_(0, 0)
    return found
