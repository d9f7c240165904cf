"""DELLA's drop: the smaller an element's magnitude in its row, the likelier it goes."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from ._declaration import Block, Pass, Subject, exact, of_models, per_model
from ._seeds import drop_threshold
from ._sparse import RandomMethod

if TYPE_CHECKING:
    from torch import Tensor

    from ..ops import Kept


STRETCH = 1 << 12  # thresholds that are told by one exact division; few enough for float64 to tell the others
CACHED = 1 << 15  # thresholds of shorter rows are kept: many tensors have rows of one length
# What ranking a row takes at most, by elements that are worked on together: as kernels/native/ranks.cpp has it.
ROW_BYTES, WIDE_BYTES, TABLES = 40, 64, 1 << 18


def thresholds(columns: int, density: Fraction, epsilon: Fraction) -> Tensor:
    """Per rank in a row, ascending by magnitude, the Philox words below which an element is dropped; int64 [columns].

    An element of rank r (from 0) is kept with probability (density − ε) + 2ε · r / (columns − 1), one that is alone in
    its row with probability density (Deep et al. 2024, Section 3).
    """
    import torch

    if columns < 2:
        return torch.full((columns,), drop_threshold(1 - density))
    return (_cached if columns <= CACHED else _thresholds)(columns, density, epsilon)


def _thresholds(columns: int, density: Fraction, epsilon: Fraction) -> Tensor:
    import numpy as np
    import torch

    # The probability of rank r is (first − step · r) / whole, all whole numbers, and its word that times 2^32.
    first, step = (1 - density + epsilon) * (columns - 1), 2 * epsilon
    denominator = math.lcm(first.denominator, step.denominator)
    top, whole = int(first * denominator), denominator * (columns - 1)
    fall, part = divmod(int(step * denominator) << 32, whole)  # from one word to the next
    words = np.empty(columns, np.int64)
    for start in range(0, columns, STRETCH):
        word, rest = divmod((top << 32) - start * (fall * whole + part), whole)
        ranks = np.arange(min(STRETCH, columns - start))
        carried = rest / whole - ranks * (part / whole)
        carry = np.floor(carried).astype(np.int64)
        if part:
            for i in np.flatnonzero(np.abs(carried - np.rint(carried)) < 1e-9).tolist():  # too near for float64
                carry[i] = (rest - i * part) // whole
        words[start : start + STRETCH] = word - fall * ranks + carry
    return torch.from_numpy(words)


_cached = functools.lru_cache(maxsize=64)(_thresholds)


class DellaMethod(RandomMethod):
    """Drops elements with a probability that falls with their rank in the row, by 2ε from the least to the largest."""

    per_tensor = RandomMethod.per_tensor | {"epsilon"}
    by_model: ClassVar[tuple[str, ...]] = (*RandomMethod.by_model, "epsilon")
    rows_whole = True

    epsilon: per_model(0, 0.5) = Field(default=0.1, description="ε, how far a probability may lie from density")  # type: ignore[valid-type]

    def problems(self, models: Sequence[str]) -> list[str]:
        problems = super().problems(models)
        if problems:
            return problems
        pairs = zip(models, self.densities(models), self.epsilons(models), strict=True)
        return [
            f"{self.name}: epsilon {float(e):g} of {model} is too large: density {float(d):g} ± epsilon must lie "
            f"between 0 and 1, so it can be at most {float(min(d, 1 - d)):g}"
            for model, d, e in pairs
            if e > min(d, 1 - d)
        ]

    def epsilons(self, models: Sequence[str]) -> list[Fraction]:
        return [exact(epsilon) for epsilon in of_models(self.epsilon, models)]

    @property
    def prepares(self) -> bool:
        return True  # tables

    def tables(self, block: Block, models: Sequence[str]) -> list[Tensor]:
        assert block.base is not None
        pairs = list(zip(self.densities(models), self.epsilons(models), strict=True))
        known = {pair: thresholds(block.subject.columns, *pair).to(block.base.device) for pair in dict.fromkeys(pairs)}
        return [known[pair] for pair in pairs]

    def passes_on(self, subject: Subject, models: Sequence[str], wide: bool = False) -> tuple[Pass, ...]:
        columns = subject.columns
        tables = 8 * columns * len(set(zip(self.densities(models), self.epsilons(models), strict=True)))
        together = min(subject.numel, columns * (8 // math.gcd(columns, 8)))
        held = (tables if columns > CACHED else 0) + together * (WIDE_BYTES if wide else ROW_BYTES) + TABLES
        return tuple(replace(one, held=one.held + held) for one in super().passes_on(subject, models, wide))

    def masks(self, block: Block, models: Sequence[str]) -> Tensor:
        from .. import ops

        assert block.whole is not None
        base, whole = block.whole
        assert base is not None
        stop = block.start + block.models[0].numel()
        keys, columns = self.keys(block.subject, models), block.subject.columns
        return ops.rank_drop(base, whole, columns, keys, block.prepared.tables, start=block.start, stop=stop)

    def drawn(self, block: Block, models: Sequence[str]) -> Kept:
        from ..ops import Kept

        return Kept(keep=self.masks(block, models))
