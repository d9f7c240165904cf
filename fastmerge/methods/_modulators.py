"""EMR-Merging's rescalers, and its masks for a task vector merged by another method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from ..batching import at_once
from ._declaration import Block, Finite, Pass, Statistics, Subject, WeightedMethod, single
from ._prefilter import Prefiltered

Rescale = Literal["global", "mean_of_means"]


def rescalers(statistics: Statistics, rescale: Rescale) -> list[float]:
    """λ_k = Σ|τ_k| / Σ|mask_k ⊙ unified| over the whole model (Huang et al. 2024, Section 3.2), rounded to float32.

    "mean_of_means" sums per-tensor means instead, as the released code does. A zero denominator, which a task equal to
    base has, gives 0.
    """
    magnitude, kept = (statistics.total(row, means=rescale == "mean_of_means") for row in (0, 1))
    return [single(m / k) if k else 0.0 for m, k in zip(magnitude, kept, strict=True)]


class Modulated(Prefiltered):
    """A method whose result is an EMR artefact: unified task vector, a mask and a rescaler per task."""

    per_tensor = frozenset({"prefilter"})

    rescale: Rescale = Field(
        default="global", description="rescalers from sums over the model, or from per-tensor means"
    )

    def results(self, statistics: Sequence[Statistics]) -> dict[str, list[float]]:
        return {"rescalers": rescalers(statistics[-1], self.rescale)}


class TaskVectorMethod(Prefiltered, WeightedMethod):
    """A method that merges task vectors into one: base + merged vector, or that vector with masks and rescalers."""

    per_tensor = WeightedMethod.per_tensor | {"scale", "prefilter"}
    rows_whole: ClassVar[bool] = False

    scale: Finite = Field(default=1.0, description="λ, the factor of the merged task vector")
    modulators: bool = Field(default=False, description="keep masks and rescalers per task (EMR-Merging, Table 7)")
    rescalers: Rescale = Field(
        default="global", description="of modulators: from sums over the model, or per-tensor means"
    )

    def arguments(self, block: Block, models: Sequence[str], earlier: Sequence[Statistics]) -> dict[str, Any]:
        """What ops.combine is called with on this block, beside tensors and scale; parts of a method add to it."""
        return {"weights": self.weights_of(models)}

    def ranks(self, subject: Subject, models: Sequence[str], earlier: Sequence[Statistics]) -> list[list[int]]:
        """Per model the ranks at which `arguments` needs the tensor's cuts."""
        return [[] for _ in models]

    def prepare(self, block: Block, models: Sequence[str], earlier: Sequence[Statistics]) -> Any:
        """What `arguments` needs to know of the whole tensor, for methods that say `prepares`."""

    @property
    def prepares(self) -> bool:
        return False

    @property
    def trims(self) -> bool:
        return False

    def passes(self, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        def merge(block: Block, earlier: Sequence[Statistics]) -> None:
            from .. import ops

            with at_once():
                arguments = self.arguments(block, models, earlier)
            merged = ops.combine(block.base, block.models, **arguments, scale=self.scale, out=block.merged)
            block.nonfinite += merged.nonfinite

        def merge_and_mask(block: Block, earlier: Sequence[Statistics]) -> None:
            from .. import ops

            assert block.base is not None
            # Masks and sums are taken on the merged vector before it is rounded for storage.
            wide = ops.working_dtype([block.base, *block.models])
            with at_once():
                arguments = self.arguments(block, models, earlier)
            merged = ops.combine(block.base, block.models, **arguments, scale=self.scale, as_delta=True, dtype=wide)
            ops.mask_against(
                block.base, block.models, merged.merged, **self.masking(models), out=block.masks, sums=block.sums
            )
            block.nonfinite += merged.nonfinite + ops.combine(None, [merged.merged], out=block.unified).nonfinite

        return (
            Pass(
                merge_and_mask if self.modulators else merge,
                writes=("unified", "masks") if self.modulators else ("merged",),
                rows=2 if self.modulators else 0,
                ranks=(lambda subject, earlier: self.ranks(subject, models, earlier)) if self.trims else None,
                prepare=(lambda block, earlier: self.prepare(block, models, earlier)) if self.prepares else None,
                rows_whole=self.rows_whole,
                together=True,
            ),
        )

    def masking(self, models: Sequence[str]) -> dict[str, Any]:
        """How ops.mask_against chooses a task's elements."""
        return {}

    def results(self, statistics: Sequence[Statistics]) -> dict[str, list[float]]:
        return {"rescalers": rescalers(statistics[-1], self.rescalers)} if self.modulators else {}
