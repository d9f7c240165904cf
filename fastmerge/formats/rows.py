"""Matrices whose rows are gathered from stored ones, such as embeddings of tokens in another order."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

    @property
    def digest(self) -> str:
        """Short for all of it."""
        places = [(str(info.file), info.start) for info in self.sources]
        content = repr((places, self.picks, sorted(self.means.items()), self.padding))
        return hashlib.sha256(content.encode()).hexdigest()[:16]
