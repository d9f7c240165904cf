"""Model Breadcrumbs (Davari & Belilovsky 2024) with TIES-Merging's sign vote."""

from __future__ import annotations

from ._breadcrumbs import BreadcrumbsMethod
from ._sparse import VotingMethod


class BreadcrumbsTies(BreadcrumbsMethod, VotingMethod):
    """base + scale · what agrees with the elected sign, without the largest and smallest magnitudes of each tensor."""

    name = "breadcrumbs_ties"
    source = "Davari & Belilovsky 2024, arXiv 2312.06795; Yadav et al. 2023, arXiv 2306.01708"
