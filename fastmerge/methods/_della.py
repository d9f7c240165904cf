"""DELLA's drop: the smaller an element's magnitude in its row, the likelier it goes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from ._declaration import Block, exact, of_models, per_model
from ._seeds import drop_threshold
from ._sparse import RandomMethod

if TYPE_CHECKING:
    from torch import Tensor

    from ..ops import Kept


@functools.lru_cache(maxsize=64)
def thresholds(columns: int, density: Fraction, epsilon: Fraction) -> Tensor:
    """Per rank in a row, ascending by magnitude, the Philox words below which an element is dropped; int64 [columns].

    An element of rank r (from 0) is kept with probability (density − ε) + 2ε · r / (columns − 1), one that is alone in
    its row with probability density (Deep et al. 2024, Section 3).
    """
    import numpy as np
    import torch

    if columns < 2:
        return torch.full((columns,), drop_threshold(1 - density))
    # The probability of rank r is (first − step · r) / whole, all whole numbers.
    first, step = (1 - density + epsilon) * (columns - 1), 2 * epsilon
    denominator = first.denominator * step.denominator
    top, down = int(first * denominator), int(step * denominator)
    whole = denominator * (columns - 1)
    words = (((top - down * rank) << 32) // whole for rank in range(columns))
    return torch.from_numpy(np.fromiter(words, np.int64, columns))  # a list of numbers takes five times as much


class DellaMethod(RandomMethod):
    """Drops elements with a probability that falls with their rank in the row, by 2ε from the least to the largest."""

    per_tensor = RandomMethod.per_tensor | {"epsilon"}
    by_model: ClassVar[tuple[str, ...]] = (*RandomMethod.by_model, "epsilon")
    rows_whole = True

    epsilon: per_model(0, 0.5) = Field(0.1, description="ε, how far a probability may lie from density")  # type: ignore[valid-type]

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

    def masks(self, block: Block, models: Sequence[str]) -> Tensor:
        from .. import ops

        assert block.whole is not None
        base, whole = block.whole
        assert base is not None
        columns = block.subject.columns
        table = [
            thresholds(columns, d, e).to(base.device)
            for d, e in zip(self.densities(models), self.epsilons(models), strict=True)
        ]
        stop = block.start + block.models[0].numel()
        keys = self.keys(block.subject, models)
        return ops.rank_drop(base, whole, columns, keys, table, start=block.start, stop=stop)

    def drawn(self, block: Block, models: Sequence[str]) -> Kept:
        from ..ops import Kept

        return Kept(keep=self.masks(block, models))
