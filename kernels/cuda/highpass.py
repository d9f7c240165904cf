"""FR-Merging's filter of a matrix: highpass_merge of a single model, without base."""

from __future__ import annotations

from torch import Tensor

from .highpass_merge import highpass_merge


def highpass(x: Tensor, convention: str, limit: int, out: Tensor) -> None:
    """As the reference."""
    highpass_merge(None, [x], [1.0], convention, limit, 1.0, True, out)
