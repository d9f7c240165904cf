"""One model as it is, or scaled: a part of a larger recipe."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from ._declaration import Block, Finite, Method, Pass, Statistics


class Passthrough(Method):
    """scale · θ of the one model."""

    name = "passthrough"
    source = "as in mergekit"
    uses_base = False
    counts = (1, 1)
    per_tensor = frozenset({"scale"})

    scale: Finite = Field(default=1.0, description="the factor of every weight")

    def passes(self, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        def copy(block: Block, _: Sequence[Statistics]) -> None:
            from .. import ops

            block.nonfinite += ops.combine(None, block.models, [self.scale], out=block.merged).nonfinite

        return (Pass(copy, writes=("merged",), together=True),)
