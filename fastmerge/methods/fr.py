"""FR-Merging: high-pass filtered task vectors (Zheng & Wang 2025)."""

from __future__ import annotations

from ._fourier import FourierMethod


class FR(FourierMethod):
    """base + scale · Σ λ_k G(τ_k), without the low frequencies of each weight matrix, where tasks interfere."""

    name = "fr"
    source = "Zheng & Wang 2025, arXiv 2411.16815, Section 5.2"
