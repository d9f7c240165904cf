"""EMR-Merging's rescalers, and its masks for a task vector merged by another method."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field

from ._declaration import Block, Method, Pass, Statistics, WeightedMethod

Rescale = Literal["global", "mean_of_means"]


def rescalers(statistics: Statistics, rescale: Rescale) -> list[float]:
    """λ_k = Σ|τ_k| / Σ|mask_k ⊙ unified| over the whole model (Huang et al. 2024, Section 3.2), rounded to float32.

    "mean_of_means" sums per-tensor means instead, as the released code does. A zero denominator, which a task equal to
    base has, gives 0.
    """
    magnitude, kept = (statistics.total(row, means=rescale == "mean_of_means") for row in (0, 1))
    return [ctypes.c_float(m / k).value if k else 0.0 for m, k in zip(magnitude, kept, strict=True)]


class Modulated(Method):
    """A method whose result is an EMR artefact: unified task vector, a mask and a rescaler per task."""

    rescale: Rescale = Field("global", description="rescalers from sums over the model, or from per-tensor means")

    def results(self, statistics: Sequence[Statistics]) -> dict[str, list[float]]:
        return {"rescalers": rescalers(statistics[-1], self.rescale)}


class TaskVectorMethod(WeightedMethod, Modulated):
    """A method that merges task vectors into one: base + merged vector, or that vector with masks and rescalers."""

    modulators: bool = Field(False, description="keep masks and rescalers per task (EMR-Merging, Table 7)")

    def merger(self, models: Sequence[str]) -> Callable[..., Any]:
        """ops.combine with this method's arguments, to be called with (base, models, …)."""
        raise NotImplementedError

    def passes(self, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        def merge(block: Block, _: Sequence[Statistics]) -> None:
            block.nonfinite += self.merger(models)(block.base, block.models, out=block.merged).nonfinite

        def merge_and_mask(block: Block, _: Sequence[Statistics]) -> None:
            from .. import ops

            assert block.base is not None
            # Masks and sums are taken on the merged vector before it is rounded for storage.
            wide = ops.working_dtype([block.base, *block.models])
            delta = self.merger(models)(block.base, block.models, as_delta=True, dtype=wide).merged
            ops.mask_against(block.base, block.models, delta, out=block.masks, sums=block.sums)
            block.nonfinite += ops.combine(None, [delta], out=block.unified).nonfinite

        if self.modulators:
            return (Pass(merge_and_mask, writes=("unified", "masks"), rows=2),)
        return (Pass(merge, writes=("merged",)),)

    def results(self, statistics: Sequence[Statistics]) -> dict[str, list[float]]:
        return super().results(statistics) if self.modulators else {}
