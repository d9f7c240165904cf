"""DELLA-Merging (Deep et al. 2024) without its sign vote."""

from __future__ import annotations

from ._della import DellaMethod
from ._sparse import NormalizedSparseMethod


class DellaLinear(DellaMethod, NormalizedSparseMethod):
    """base + scale · Σ w_k m_k ⊙ τ_k / density, m_k random by the rank in the row."""

    name = "della_linear"
    source = "Deep et al. 2024, arXiv 2406.11617"
