"""Statistics that depend on the inputs alone, kept so that another density or scale does not gather them again."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import ops

LIMIT = 1_000_000_000  # bytes
CUTS = "cuts"  # float64 [4, M]: model, rank, magnitude, index


@dataclass(slots=True)
class Kept:
    """float64 tensors by (statistic, tensor name), `limit` bytes at most. `changed` tells whether any was added."""

    found: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    limit: int = LIMIT
    changed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    def get(self, statistic: str, tensor: str, *shape: int) -> Tensor | None:
        """What is kept, if its shape begins like this."""
        value = self.found.get((statistic, tensor))
        fits = value is not None and value.shape[: len(shape)] == shape
        return value if fits else None

    def put(self, statistic: str, tensor: str, value: Tensor) -> None:
        with self._lock:
            before = self.found.get((statistic, tensor))
            left = self.limit - value.nbytes + (0 if before is None else before.nbytes)
            if value is not before and left >= 0:
                self.found[statistic, tensor] = value
                self.limit, self.changed = left, True

    def cuts(
        self, tensor: str, base: Tensor, models: Sequence[Tensor], ranks: Sequence[Sequence[int]]
    ) -> list[dict[int, ops.Cut]]:
        """Per model the cut of every rank, known or found together."""
        known = self._known_cuts(tensor, len(models))
        missing = [[rank for rank in own if rank not in known[k]] for k, own in enumerate(ranks)]
        if any(missing):
            most = max(map(len, missing))
            padded = [own + [0] * (most - len(own)) for own in missing]
            for k, cuts in enumerate(ops.kth_magnitude(base, models, padded)):
                known[k] |= dict(zip(padded[k], cuts, strict=True))
            rows = [(k, rank, *cut) for k, own in enumerate(known) for rank, cut in own.items()]
            self.put(CUTS, tensor, torch.tensor(rows, dtype=torch.float64).T.contiguous())
        return known

    def _known_cuts(self, tensor: str, models: int) -> list[dict[int, ops.Cut]]:
        known: list[dict[int, ops.Cut]] = [{} for _ in range(models)]
        stored = self.get(CUTS, tensor, 4)
        for k, rank, magnitude, index in [] if stored is None else stored.T.tolist():
            known[int(k)][int(rank)] = ops.Cut(magnitude, int(index))
        return known
