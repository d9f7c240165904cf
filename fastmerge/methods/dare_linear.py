"""DARE, drop and rescale (Yu et al. 2024)."""

from __future__ import annotations

from ._sparse import DroppingMethod, NormalizedSparseMethod


class DareLinear(DroppingMethod, NormalizedSparseMethod):
    """base + scale · Σ w_k m_k ⊙ τ_k / density, m_k random with the mean density."""

    name = "dare_linear"
    source = "Yu et al. 2024, arXiv 2311.03099"
