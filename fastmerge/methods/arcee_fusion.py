"""Arcee Fusion: a model's most important changes put into base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from . import _select
from ._declaration import Block, Method, Pass, Statistics, Subject

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-8  # added to probabilities


class Prepared(NamedTuple):
    """What a row's changes are multiplied by, and the importance from which on they are taken."""

    divergence: Tensor
    threshold: float


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
        held = _select.SLAB * (4 * 8 + 2 * (8 if wide else 4))
        return (Pass(self.merge, writes=("merged",), prepare=self.prepare, held=held),)

    def prepare(self, block: Block, _: Sequence[Statistics]) -> Prepared:
        import torch

        from .. import ops

        base, (model,) = block.base, block.models
        assert base is not None
        columns = _columns(block.subject)
        divergence = _divergence(base, model, columns).to(ops.working_dtype([base, model]))

        def make(own: slice) -> Tensor:
            return _importance(base[own], model[own], divergence, own.start, columns)

        last = block.subject.numel - 1
        ranks = [last + 1 - last * quarters // 4 for quarters in (1, 2, 3)]
        wide = divergence.dtype == torch.float64
        first, median, third = (cut.magnitude for cut in _select.cuts(make, last + 1, ranks, wide))
        return Prepared(divergence, median + 1.5 * (third - first))

    def merge(self, block: Block, _: Sequence[Statistics]) -> None:
        from .. import ops

        assert block.base is not None
        divergence, threshold = block.prepared
        importance = _importance(block.base, block.models[0], divergence, block.start, _columns(block.subject))
        kept = ops.Kept(keep=ops.pack_bits(importance.double() >= threshold)[None])
        merged = ops.combine(block.base, block.models, kept=kept, offset=block.start, out=block.merged)
        block.nonfinite += merged.nonfinite


def _columns(subject: Subject) -> int:
    return subject.shape[-1] if subject.shape else 1


def _divergence(base: Tensor, model: Tensor, columns: int) -> Tensor:
    """Σ p log(p / q) of every row, float64 [rows]: p the softmax of the model's row, q of base's."""
    import torch

    rows = max(1, _select.SLAB // columns)
    found = []
    for start in range(0, base.numel(), rows * columns):
        own = slice(start, start + rows * columns)
        p, q = (x[own].double().view(-1, columns).softmax(1) + EPSILON for x in (model, base))
        found.append((p * (p / q).log()).sum(1).clamp(min=0))
    return torch.cat(found)


def _importance(base: Tensor, model: Tensor, divergence: Tensor, start: int, columns: int) -> Tensor:
    from .. import ops

    stop = start + base.numel()
    first, last = start // columns, -(-stop // columns)
    factors = divergence[first:last, None].expand(-1, columns).reshape(-1)[start - first * columns :][: stop - start]
    return ops.delta_sum(base, [model]).abs_().mul_(factors).nan_to_num_(0, 0)
