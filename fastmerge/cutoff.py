"""FR-Merging's cutoffs, for which there are several readings, as one integer limit on squared distances.

Decimals are taken exactly and squared distances between bins are integers, so that no bin's fate hangs on rounding.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from .errors import InputError, nearest

Convention = Literal["paper", "released"]


@dataclass(frozen=True, slots=True)
class Cutoff:
    """What a user asks for. "paper" goes by `cutoff` (0.3 if nothing is given) or `bins`, "released" by `ratio` (0.7).

    paper: keep the signed frequencies (η, γ) with √(η² + γ²) ≥ D0, where D0 = cutoff · min(H, W) / 2, or for `bins` the
    smallest D0 that removes at least that fraction of all bins. released: keep the bins of the unshifted spectrum whose
    indices are within ratio · min(H, W) of (H // 2, W // 2).
    """

    cutoff: float | None = None
    bins: float | None = None
    convention: Convention = "paper"
    ratio: float | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.convention not in ("paper", "released"):
            guess = nearest(str(self.convention), ("paper", "released"))
            problems.append(f"convention is 'paper' or 'released', not {self.convention!r}{guess}")
        if self.cutoff is not None and self.bins is not None:
            problems.append("cutoff and bins are two ways to say the same: give one of them")
        for name, most, convention in (
            ("cutoff", math.inf, "paper"),
            ("bins", 1, "paper"),
            ("ratio", math.inf, "released"),
        ):
            value = getattr(self, name)
            if value is None:
                continue
            if not (0 <= value <= most and math.isfinite(value)):
                problems.append(f"{name} must be a number from 0 {'to 1' if most == 1 else 'up'}, not {value!r}")
            if self.convention in ("paper", "released") and self.convention != convention:
                problems.append(f"{name} belongs to convention={convention!r}, not to {self.convention!r}")
        if problems:
            raise InputError(problems)

    def limit(self, h: int, w: int) -> int:
        """In an h × w spectrum, "paper" keeps squared distances of at least the limit, "released" of at most it."""
        return _limit(self, h, w)

    def share(self, h: int, w: int) -> float:
        """Which part of an h × w spectrum's bins is kept."""
        return _kept(h, w, self.convention, self.limit(h, w)) / (h * w) if h * w else 1.0

    def columns(self, h: int, w: int) -> int:
        """A bound of the columns of the half-spectrum that a filter must hold."""
        half = w // 2 + 1
        return half if self.convention == "released" else min(half, math.isqrt(self.limit(h, w)) + 1)


@functools.lru_cache(maxsize=256)
def _limit(of: Cutoff, h: int, w: int) -> int:
    if of.bins is not None:
        return _limit_of_bins(h, w, _exact(of.bins))
    beyond = h * h + w * w  # further than any bin
    if of.convention == "released":
        return min(math.floor((_exact(0.7 if of.ratio is None else of.ratio) * min(h, w)) ** 2), beyond)
    return min(math.ceil((_exact(0.3 if of.cutoff is None else of.cutoff) * min(h, w) / 2) ** 2), beyond)


def _exact(value: float) -> Fraction:
    """The decimal that was written, not the binary fraction next to it."""
    return Fraction(str(float(value)))


@functools.lru_cache(maxsize=256)
def _kept(h: int, w: int, convention: Convention, limit: int) -> int:
    """How many of the h · w bins are kept."""
    total = 0
    for x in range(w):
        if convention == "released":
            left = limit - (x - w // 2) ** 2
            reach = math.isqrt(left) if left >= 0 else -1  # rows within so many of the middle one are kept
            total += min(reach, h // 2) + min(reach, h - 1 - h // 2) + 1 if left >= 0 else 0
        else:
            left = limit - min(x, w - x) ** 2
            reach = math.isqrt(left - 1) if left > 0 else -1  # rows within so many of the first one are removed
            total += h - (min(reach, (h - 1) // 2) + min(reach, h // 2) + 1 if left > 0 else 0)
    return total


def _limit_of_bins(h: int, w: int, fraction: Fraction) -> int:
    """The least limit below whose root lie at least that fraction of the h · w bins."""
    import numpy as np

    y, x = np.arange(h), np.arange(w)
    eta, gamma = np.sort(np.minimum(y, h - y) ** 2), np.minimum(x, w - x) ** 2

    def below(limit: int) -> int:
        return int(np.searchsorted(eta, limit - gamma).sum())

    return bisect_left(range(int(eta[-1] + gamma.max()) + 1), math.ceil(fraction * h * w), key=below)
