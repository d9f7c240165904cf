"""DARE, drop and rescale (Yu et al. 2024), with TIES-Merging's sign vote."""

from __future__ import annotations

from ._sparse import DroppingMethod, VotingMethod


class DareTies(DroppingMethod, VotingMethod):
    """base + scale · what agrees with the elected sign of m_k ⊙ τ_k / density, m_k random with the mean density."""

    name = "dare_ties"
    source = "Yu et al. 2024, arXiv 2311.03099; Yadav et al. 2023, arXiv 2306.01708"
