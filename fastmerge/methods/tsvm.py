"""TSV-Merge: task singular vectors, made orthogonal between tasks (Gargiulo et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from pydantic import Field

from ..targets import excluded, matches, matrices
from ._declaration import Block, Finite, Method, Pass, Statistics, Subject, exact
from ._filter import Patterns
from ._singular import HELD, merge_matrices

if TYPE_CHECKING:
    from torch import Tensor


class TSVM(Method):
    """base + scale · U Σ Vᵀ of each matrix, U and V the tasks' leading singular vectors, whitened together.

    Each of K task vectors keeps the fraction `rank` (1 / K by default) of its singular triplets, but none that is zero.
    Their left vectors side by side are replaced by the nearest orthogonal ones (the polar factor), so are the right
    ones; directions that they have twice, as those of equal models, count once. Other tensors get scale · the mean of
    the task vectors.
    """

    name = "tsvm"
    source = "Gargiulo et al. 2025, arXiv 2412.00081, Section 4.2, Algorithm 1"
    per_tensor = frozenset({"scale", "rank"})

    scale: Finite = Field(default=1.0, description="α, the factor of the merged task vector")
    rank: float | None = Field(
        default=None, gt=0, le=1, description="fraction of singular vectors kept; 1 / K by default"
    )
    targets: Patterns | None = Field(
        default=None,
        description="patterns of matrices to decompose; all 2-D weights but embeddings and heads by default",
    )
    exclude: Patterns = Field(default=(), description="patterns of tensors not to decompose")

    def matrices(self, subject: Subject) -> tuple[int, int, int] | None:
        """The tensor as [B, H, W], B matrices to be decomposed; None where it is not."""
        wanted = not excluded(subject.name) if self.targets is None else matches(subject.name, self.targets)
        if not wanted or matches(subject.name, self.exclude) or not subject.numel:
            return None
        return matrices(subject.name, subject.shape)

    def passes(self, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        return (Pass(self.merge, writes=("merged",), prepare=self.prepare),)

    def passes_on(self, subject: Subject, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        shape = self.matrices(subject)
        if shape is None:
            return (Pass(self.merge, writes=("merged",)),)
        _, h, w = shape
        held = (subject.numel + HELD * h * w) * (8 if wide else 4)
        return (Pass(self.merge, writes=("merged",), prepare=self.prepare, held=held),)

    def prepare(self, block: Block, _: Sequence[Statistics]) -> Tensor | None:
        """The merged task vector of a tensor of matrices, whole."""
        import torch

        from .. import ops
        from ..ops.memory import widened

        shape = self.matrices(block.subject)
        if shape is None:
            return None
        assert block.base is not None
        count, h, w = shape
        merged = []
        for start in range(0, count * h * w, h * w):
            own = slice(start, start + h * w)
            base = widened(block.base[own], block.models)
            taus = (ops.delta_sum(base, [model[own]]).view(h, w) for model in block.models)
            merged.append(merge_matrices(taus, self.kept(min(h, w), len(block.models))).view(-1))
        return merged[0] if count == 1 else torch.cat(merged)

    def kept(self, full: int, models: int) -> int:
        """How many of `full` singular triplets each task keeps, at least one."""
        return max(1, int(full * (Fraction(1, models) if self.rank is None else exact(self.rank))))

    def merge(self, block: Block, _: Sequence[Statistics]) -> None:
        from .. import ops

        assert block.base is not None
        if block.prepared is None:
            merged = ops.combine(block.base, block.models, normalize=True, scale=self.scale, out=block.merged)
        else:
            delta = block.prepared[block.start : block.start + block.base.numel()]
            merged = ops.combine(None, [block.base, delta], [1.0, self.scale], out=block.merged)
        block.nonfinite += merged.nonfinite
