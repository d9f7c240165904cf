"""FR-Merging's filter before another method: each task vector without its low frequencies (Zheng & Wang 2025, Table 8).

A filtered tensor's task vectors are held whole, in the working type; others are merged as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from ._declaration import Method, Pass, Remarks, Subject
from ._filter import Filter, remarks


class Prefiltered(Method):
    """A method of task vectors, which may be filtered first."""

    prefilter: Filter | None = Field(
        default=None, description="filter each task vector first, such as {cutoff: 0.3} (see fr)"
    )

    def passes_on(self, subject: Subject, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        passes, chosen = super().passes_on(subject, models, wide), self.prefilter
        if chosen is None or chosen.matrices(subject) is None:
            return passes

        whole = (len(models) + 1) * subject.numel * (8 if wide else 4)  # and the zeros that stand for base
        held = whole + chosen.panel_bytes(subject, wide, len(models))
        # What is summed up depends on the filter, not on the inputs alone.
        return tuple(replace(one, prefilter=chosen.deltas, held=one.held + held, statistic=None) for one in passes)

    def remarks(self, tensors: Sequence[tuple[Subject, Method]]) -> Remarks:
        own = [(s, m.prefilter) for s, m in tensors if isinstance(m, Prefiltered) and m.prefilter is not None]
        return remarks(f"{self.name}: prefilter", own) if own else Remarks()
