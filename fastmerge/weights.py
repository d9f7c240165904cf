"""The weights that models are merged with."""

from __future__ import annotations

import math
from collections.abc import Sequence

ROUNDING = 1e-8  # of the weights' magnitudes


def cancel(weights: Sequence[float]) -> bool:
    """Whether the sum is zero, or what rounding leaves of zero (0.1 + 0.2 − 0.3), so that nothing is divided by it."""
    return abs(math.fsum(weights)) <= ROUNDING * math.fsum(map(abs, weights))
