"""Task arithmetic (Ilharco et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._declaration import Block, NormalizedMethod, Statistics
from ._modulators import TaskVectorMethod


class TaskArithmetic(TaskVectorMethod, NormalizedMethod):
    """base + scale · Σ w_k τ_k, divided by Σ w_k where `normalize`."""

    name = "task_arithmetic"
    source = "Ilharco et al. 2023, arXiv 2212.04089"

    def arguments(self, block: Block, models: Sequence[str], earlier: Sequence[Statistics]) -> dict[str, Any]:
        return super().arguments(block, models, earlier) | {"normalize": self.normalize}
