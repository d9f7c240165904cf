"""DELLA-Merging (Deep et al. 2024)."""

from __future__ import annotations

from ._della import DellaMethod
from ._sparse import VotingMethod


class Della(DellaMethod, VotingMethod):
    """base + scale · what agrees with the elected sign of m_k ⊙ τ_k / density, m_k random by the rank in the row."""

    name = "della"
    source = "Deep et al. 2024, arXiv 2406.11617"
