"""Inner products of task vectors with each other: `delta_sum` of each, then `inner_products`, a slab at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference.numeric import working_dtype
from .delta_sum import delta_sum
from .inner_products import inner_products

SLAB = 1 << 24  # elements whose task vectors are held; a multiple of a block


def gram(base: Tensor | None, models: Sequence[Tensor], sums: Tensor) -> None:
    count = len(models)
    # Each row's sums from the diagonal on, and room for the norms that come with them.
    rows = [torch.cat((sums[j, j:], sums.new_zeros(count - j + 1))) for j in range(count)]
    for start in range(0, models[0].numel(), SLAB):
        vectors = [model[start : start + SLAB] for model in models]
        if base is not None:
            own = base[start : start + SLAB]
            wide = working_dtype([base, *models])
            taus = [torch.empty_like(own, dtype=wide) for _ in models]
            for model, tau in zip(vectors, taus, strict=True):
                delta_sum(own, [model], [1.0], tau)
            vectors = taus
        for j, vector in enumerate(vectors):
            inner_products(vector, vectors[j:], rows[j])
    for j, row in enumerate(rows):
        sums[j, j:] = sums[j:, j] = row[: count - j]
