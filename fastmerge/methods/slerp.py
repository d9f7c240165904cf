"""Spherical interpolation (Shoemake 1985), as mergekit has it."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from ._declaration import Block, Method, Pass, Statistics


class Slerp(Method):
    """Each tensor of base and of the one model as a vector: the point `t` of the way on the arc between them."""

    name = "slerp"
    source = "Shoemake 1985, as in mergekit: straight where the vectors are nearly parallel"
    counts = (1, 1)
    per_tensor = frozenset({"t"})

    t: float = Field(default=0.5, ge=0, le=1, description="0 is base, 1 the model")

    def passes(self, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        def measure(block: Block, _: Sequence[Statistics]) -> list[float]:
            from .. import ops

            assert block.base is not None
            products = ops.inner_products(block.base, block.models)
            norms = float(products.gradient_norm), float(products.norms[0])
            return list(ops.arc(float(products.dots[0]), *norms, self.t))

        def merge(block: Block, _: Sequence[Statistics]) -> None:
            from .. import ops

            assert block.base is not None
            merged = ops.combine(None, [block.base, *block.models], block.prepared, out=block.merged)
            block.nonfinite += merged.nonfinite

        return (Pass(merge, writes=("merged",), prepare=measure),)
