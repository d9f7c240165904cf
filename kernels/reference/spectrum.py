"""Which part of a matrix's spectrum a filter has to transform: from the shape alone.

Shared by the backends that do not transform all of it. G(v) is what is kept of v, or v less what is removed. Of the
half-spectrum (frequencies 0 … W//2 along the rows) the first columns hold all that is removed, the last all that is
kept; only the fewer of the two are transformed and stored.

Columns are what is pruned however tall a matrix is: for a disc about the origin, pruning the rows of a tall matrix
instead would save less than a tenth of the arithmetic, and transposing all inputs costs as much as a transform.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Bins:
    """Which bins of an h × w spectrum are kept, by convention and limit (kernels/README.md)."""

    h: int
    w: int
    convention: str
    limit: int

    def removes(self, x: int) -> bool:
        """Whether column x or its mirror image has a bin that is not kept."""
        if self.convention == "paper":
            return x * x < self.limit
        return max(self._from_middle(x)) ** 2 + (self.h // 2) ** 2 > self.limit

    def keeps(self, x: int) -> bool:
        """Whether column x or its mirror image has a bin that is kept."""
        if self.convention == "paper":
            return x * x + (self.h // 2) ** 2 >= self.limit
        return min(self._from_middle(x)) ** 2 <= self.limit

    @property
    def middle(self) -> int:
        """Twice the row that `reach` goes out from."""
        return self.h if self.convention == "paper" else 2 * (self.h // 2)

    def reach(self, x: int) -> int:
        """Bin (y, x) is kept where |2y − middle| is at most this."""
        x %= self.w
        if self.convention == "paper":
            missing = self.limit - min(x, self.w - x) ** 2
            return self.h - 2 * (math.isqrt(missing - 1) + 1 if missing > 0 else 0)
        left = self.limit - (x - self.w // 2) ** 2
        return 2 * math.isqrt(left) if left >= 0 else -1

    def shares(self, columns: range, dtype: torch.dtype) -> Tensor:
        """What is kept of the bins of these columns, [columns, h]: 0 or 1.

        Where a bin and its mirror image (−y mod h, −x mod w) are not kept together, half of both is what is real.
        """
        distance = (2 * torch.arange(self.h) - self.middle).abs()
        mirrored = distance[-torch.arange(self.h) % self.h]
        reach, other = (torch.tensor([self.reach(sign * x) for x in columns])[:, None] for sign in (1, -1))
        return ((distance <= reach).to(dtype) + (mirrored <= other)) / 2

    def _from_middle(self, x: int) -> tuple[int, int]:
        return abs(x - self.w // 2), abs(-x % self.w - self.w // 2)


@dataclass(frozen=True, slots=True)
class Plan:
    """Transform the columns first … first + columns; if they are those that hold what is removed, subtract it."""

    subtract: bool
    first: int
    columns: int

    @property
    def slice(self) -> slice:
        """The planned columns of a half-spectrum."""
        return slice(self.first, self.first + self.columns)

    def factors(self, bins: Bins, columns: range, dtype: torch.dtype) -> Tensor:
        """What these of the planned columns are multiplied by between unnormalised transforms: [columns, h]."""
        shares = bins.shares(range(self.first + columns.start, self.first + columns.stop), dtype)
        return shares.sub_(float(self.subtract)).div_(bins.h * bins.w)


def plan(bins: Bins) -> Plan:
    """The fewer of the columns that hold what is removed, and of those that hold what is kept."""
    half = bins.w // 2 + 1
    removing = bisect_left(range(half), True, key=lambda x: not bins.removes(x))
    first_kept = bisect_left(range(half), True, key=bins.keeps)
    if removing <= half - first_kept:
        return Plan(True, 0, removing)
    return Plan(False, first_kept, half - first_kept)
