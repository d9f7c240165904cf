"""NearSwap: base, moved at most t towards a model (alchemonaut 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from . import _select
from ._declaration import FLOAT32, Block, Method, Pass, Statistics


class NearSwap(Method):
    """The model's weights where they are within t of base's, elsewhere base's moved by t towards them.

    That is base + min(1, t / |τ|) · τ. mergekit counts a |τ| below 1e-6 as 1e-6, which matters for a smaller t alone.
    """

    name = "nearswap"
    source = "alchemonaut 2024, huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001"
    counts = (1, 1)
    per_tensor = frozenset({"t"})

    t: float = Field(default=1e-4, ge=0, le=FLOAT32, description="how far a weight may move")

    def passes(self, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        held = 4 * _select.SLAB * (8 if wide else 4)
        return (Pass(self.merge, writes=("merged",), held=held, by_torch=True),)

    def merge(self, block: Block, _: Sequence[Statistics]) -> None:
        from .. import ops

        assert block.base is not None
        assert block.merged is not None
        for own in _select.slabs(block.base):
            base, model = block.base[own], block.models[0][own]
            tau = ops.delta_sum(base, [model])
            size = tau.abs()
            moved = tau.clamp_(-self.t, self.t).add_(base)
            swapped = _select.chosen(size <= self.t, model.to(tau.dtype), moved)
            block.nonfinite += size.numel() - int((size < math.inf).count_nonzero())
            block.nonfinite += ops.combine(None, [swapped], out=block.merged[own]).nonfinite
