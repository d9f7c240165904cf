"""MagMax (Marczak et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._declaration import Block, Statistics
from ._modulators import TaskVectorMethod


class MagMax(TaskVectorMethod):
    """base + scale · the w_k τ_k of largest magnitude per element, the first of equals."""

    name = "magmax"
    source = "Marczak et al. 2024, arXiv 2407.06322"

    def arguments(self, block: Block, models: Sequence[str], earlier: Sequence[Statistics]) -> dict[str, Any]:
        return super().arguments(block, models, earlier) | {"consensus": "max"}
