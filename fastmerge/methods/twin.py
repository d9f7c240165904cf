"""Twin-Merging: a shared expert, and what it lacks of each task as a matrix of low rank (Lu et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..targets import matches, matrices
from ._declaration import Block, ExpertSize, Finite, Pass, Statistics, Subject, WeightedMethod
from ._filter import Patterns
from ._singular import HELD, leading

if TYPE_CHECKING:
    from torch import Tensor

    from ..ops import Expert, LowRank


class Twin(WeightedMethod):
    """A shared expert θ_s = base + scale · Σ w_k τ_k, and per task the best approximation of θ_k − θ_s of rank `rank`.

    An expert changes every matrix: a weight of two dimensions, a stack of matrices one below the other, a convolution
    as [out, in·kh·kw]. Vectors are kept whole. With the router of a folder of experts, a model is θ_s + Σ w_k v_k.
    """

    name = "twin"
    source = "Lu et al. 2024, arXiv 2406.15479, Section 3.2"
    per_tensor = WeightedMethod.per_tensor | {"scale", "rank"}

    nonfinite: Literal["error"] = Field(
        default="error", description="always stop at NaN and infinity: no expert can hold them"
    )
    scale: Finite = Field(default=0.3, description="λ, the factor of the shared expert's task vectors")
    rank: int = Field(default=16, ge=1, description="of a matrix's expert")
    exclude: Patterns = Field(default=(), description="patterns of tensors that experts do not change")

    def matrix(self, subject: Subject) -> tuple[int, int] | None:
        """Rows and columns of the tensor as one matrix; None where it is a vector, or no expert changes it."""
        if len(subject.shape) < 2 or not subject.numel or self._excluded(subject):
            return None
        stack = matrices(subject.name, subject.shape)
        columns = stack[2] if stack else subject.columns
        return subject.numel // columns, columns

    def _excluded(self, subject: Subject) -> bool:
        return matches(subject.name, self.exclude)

    def passes(self, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        return (self._merging(models, 0, wide),)

    def passes_on(self, subject: Subject, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        return (self._merging(models, subject.numel, wide),)

    def _merging(self, models: Sequence[str], numel: int, wide: bool) -> Pass:
        def sizes(subject: Subject, _: Sequence[Statistics]) -> list[ExpertSize]:
            if self._excluded(subject):
                return []
            shape = self.matrix(subject)
            own = subject.numel if shape is None else (shape[0], min(self.rank, *shape), shape[1])
            return [own] * len(models)

        def prepare(block: Block, _: Sequence[Statistics]) -> None:
            if not self._excluded(block.subject):
                block.experts = self._experts(block, models)

        def merge(block: Block, _: Sequence[Statistics]) -> None:
            from .. import ops

            weights = self.weights_of(models)
            merged = ops.combine(block.base, block.models, weights, scale=self.scale, out=block.merged)
            block.nonfinite += merged.nonfinite

        held = (HELD + 2) * numel * (8 if wide else 4)
        return Pass(merge, writes=("merged",), prepare=prepare, experts=sizes, held=held)

    def _experts(self, block: Block, models: Sequence[str]) -> list[Expert | LowRank]:
        """What each model has beyond the shared expert, of a whole tensor in the working type."""
        from .. import ops

        assert block.base is not None
        wide = ops.working_dtype([block.base, *block.models])
        weights = self.weights_of(models)
        shared = ops.combine(block.base, block.models, weights, scale=self.scale, dtype=wide).merged
        shape = self.matrix(block.subject)
        if shape is None:
            everything = ops.Cut(0.0, block.subject.numel)
            return [ops.extract_topk(shared, model, cut=everything, dtype=wide) for model in block.models]
        return [self._product(ops.delta_sum(shared, [model]).view(shape)) for model in block.models]

    def _product(self, difference: Tensor) -> LowRank:
        import torch

        from .. import ops

        rank = min(self.rank, *difference.shape)
        u, sigma, v = leading(difference, rank)
        lacking = rank - len(sigma)
        up = torch.nn.functional.pad(u * sigma, (0, lacking))
        return ops.LowRank(up, torch.nn.functional.pad(v, (0, 0, 0, lacking)))

    def results(self, statistics: Sequence[Statistics]) -> dict[str, list[float]]:
        return {"scales": [1.0] * statistics[-1].models}
