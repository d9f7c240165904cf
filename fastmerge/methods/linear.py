"""Weighted average of the models (Wortsman et al. 2022, Model soups)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from ._declaration import Block, NormalizedMethod, Pass, Statistics


class Linear(NormalizedMethod):
    """Σ w_k θ_k, divided by Σ w_k where `normalize`; base lends names, dtypes and tokenizer, but no weights."""

    name = "linear"
    source = "Wortsman et al. 2022, arXiv 2203.05482"
    uses_base = False

    normalize: bool = Field(default=True, description="divide by the sum of the weights")

    def passes(self, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        def merge(block: Block, _: Sequence[Statistics]) -> None:
            from .. import ops

            result = ops.combine(
                None, block.models, self.weights_of(models), normalize=self.normalize, out=block.merged
            )
            block.nonfinite += result.nonfinite

        return (Pass(merge, writes=("merged",), together=True),)
