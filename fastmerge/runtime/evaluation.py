"""How well a router tells tasks apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..forms import well_formed
from .router import Router


@dataclass(frozen=True, slots=True)
class Evaluation:
    """confusion: int64 [K, K], how many samples of the row's task were given to the column's."""

    tasks: tuple[str, ...]
    confusion: Tensor

    @property
    def samples(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        return int(self.confusion.trace()) / self.samples

    def of_task(self, task: str) -> tuple[int, float | None]:
        """How many samples of a task there are, and which share of them was given to it."""
        row = self.confusion[self.tasks.index(task)]
        n = int(row.sum())
        return n, int(row[self.tasks.index(task)]) / n if n else None

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as JSON."""
        by_task = {task: dict(zip(("samples", "accuracy"), self.of_task(task), strict=True)) for task in self.tasks}
        rows = zip(self.tasks, self.confusion.tolist(), strict=True)
        confusion = {task: dict(zip(self.tasks, row, strict=True)) for task, row in rows}
        return {"samples": self.samples, "accuracy": self.accuracy, "tasks": by_task, "confusion": confusion}


@well_formed
def evaluate(router: Router, features: Tensor, labels: Sequence[str]) -> Evaluation:
    """Let a router choose for features [N, D], N > 0, of which each sample's task is known."""
    if len(labels) != len(features) or not len(labels):
        raise InputError(f"router: features must have a label each; they are {list(features.shape)} and {len(labels)}")
    unknown = sorted({*labels} - {*router.tasks})
    if unknown:
        raise InputError(f"router: it is for the tasks {', '.join(router.tasks)}, not for {', '.join(unknown)}")
    k = len(router.tasks)
    truth = torch.tensor([router.tasks.index(label) for label in labels])
    chosen = router.weights(features).argmax(1).cpu()
    return Evaluation(router.tasks, torch.bincount(truth * k + chosen, minlength=k * k).view(k, k))
