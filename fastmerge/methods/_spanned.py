"""Methods whose result is a combination of vectors, with coefficients that follow from the vectors' inner products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from ._declaration import Block, Method, Pass, Statistics, Subject
from ._products import Groups, grouped_gram
from ._select import SLAB

if TYPE_CHECKING:
    from torch import Tensor


class SpannedMethod(Method):
    """Each tensor is base + Σ c_k τ_k or, where the method has no base, Σ c_k θ_k.

    The coefficients c_k are rounded to float32. Where they do not exist (a vector without a direction, a NaN that is
    let through) the result is the straight line's, by the coefficients that `straight` gives.
    """

    def coefficients(self, products: Tensor, models: Sequence[str]) -> Tensor:
        """c_k, float64 [K, groups], from the inner products of the vectors, float64 [K, K, groups]; NaN where none."""
        raise NotImplementedError

    def straight(self, models: Sequence[str]) -> list[float]:
        """The coefficients of the straight line: a mean by default."""
        return [1.0 / len(models)] * len(models)

    def groups(self, subject: Subject) -> Groups | None:
        """The parts of a tensor that have coefficients of their own; None: the whole tensor is one vector."""
        return None

    def passes(self, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        def measure(block: Block, _: Sequence[Statistics]) -> Tensor:
            import torch

            from .. import ops

            groups = self.groups(block.subject)
            whole = block.base, block.models
            products = ops.gram(*whole)[:, :, None] if groups is None else grouped_gram(*whole, groups)
            found = self.coefficients(products, models)
            straight = found.new_tensor(self.straight(models))[:, None]
            return torch.where(found.isfinite().all(0), found, straight).float()

        def merge(block: Block, _: Sequence[Statistics]) -> None:
            from .. import ops

            groups, weights = self.groups(block.subject), block.prepared
            if groups is None:
                merged = ops.combine(block.base, block.models, weights[:, 0].tolist(), out=block.merged)
            else:
                merged = ops.blend(
                    block.base, block.models, weights, inner=groups.inner, offset=block.start, out=block.merged
                )
            block.nonfinite += merged.nonfinite

        return (Pass(merge, writes=("merged",), prepare=measure, held=(len(models) + 2) * SLAB * 4),)


class TaskVectorsOrModels(SpannedMethod):
    """A spanned method of models, or of task vectors from base on."""

    task_vectors: bool = Field(
        default=False,
        description="combine task vectors, and add base; else the models themselves, base lending names alone",
    )

    @property
    def uses_base(self) -> bool:  # type: ignore[override]
        return self.task_vectors
