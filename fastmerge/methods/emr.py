"""EMR-Merging: elect, mask & rescale (Huang et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

from ._declaration import Block, Pass, Statistics
from ._modulators import Modulated


class EMR(Modulated):
    """A unified task vector elected from all tasks, and per task a packed mask and a rescaler."""

    name = "emr"
    source = "Huang et al. 2024, arXiv 2405.17461, Section 3.2"

    def passes(self, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        def elect(block: Block, _: Sequence[Statistics]) -> None:
            from .. import ops

            assert block.base is not None
            assert block.unified is not None
            assert block.masks is not None
            ops.elect(block.base, block.models, out=(block.unified, block.masks), sums=block.sums)

        return (Pass(elect, writes=("unified", "masks"), rows=2, together=True),)
