"""Matrices whose rows are gathered from stored ones, such as embeddings of tokens in another order."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .safetensors import TensorInfo


@dataclass(frozen=True, slots=True)
class Rows:
    """Where each row comes from: row `picks[i]` of the first source, or, where that is −1, the mean of the rows
    (source, row) that `means` has for it, zero if none. The last `padding` rows are the mean of all before them."""

    sources: tuple[TensorInfo, ...]
    picks: tuple[int, ...]
    means: Mapping[int, tuple[tuple[int, int], ...]]
    padding: int = 0

    def extent(self, first: int, last: int) -> tuple[int, int]:
        """The rows of the first source from the least to the largest that rows `first` to `last` are taken from; none
        where these are far apart."""
        own = [pick for pick in self.picks[first:last] if pick >= 0]
        if not own or max(own) - min(own) > 4 * (last - first):
            return 0, 0
        return min(own), max(own) + 1

    def digest(self, places: object) -> str:
        """Short for all of it, with the places of the sources."""
        content = repr((places, self.picks, sorted(self.means.items()), self.padding))
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Gathered(TensorInfo):
    """A matrix that is gathered; `file`, `start` and `stop` are the first source's."""

    rows: Rows

    @classmethod
    def of(cls, rows: Rows, dtype: str) -> Gathered:
        """It has the first source's name, and as many rows as are picked."""
        first = rows.sources[0]
        shape = (len(rows.picks), *first.shape[1:])
        return cls(first.name, dtype, shape, first.file, first.start, first.stop, rows)

    def slab(self, rows: int) -> Gathered:
        """Its first rows alone."""
        return replace(self, shape=(rows, *self.shape[1:]), rows=replace(self.rows, padding=0))
