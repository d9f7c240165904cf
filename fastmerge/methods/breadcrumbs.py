"""Model Breadcrumbs (Davari & Belilovsky 2024)."""

from __future__ import annotations

from ._breadcrumbs import BreadcrumbsMethod
from ._sparse import NormalizedSparseMethod


class Breadcrumbs(BreadcrumbsMethod, NormalizedSparseMethod):
    """base + scale · Σ w_k m_k ⊙ τ_k, m_k without the largest and the smallest magnitudes of each tensor."""

    name = "breadcrumbs"
    source = "Davari & Belilovsky 2024, arXiv 2312.06795"
