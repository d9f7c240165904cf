"""Cuts of given ranks in the order of magnitudes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .magnitude import magnitude_keys
from .numeric import task_vectors


def kth_magnitude(
    base: Tensor,
    models: Sequence[Tensor],
    ranks: Sequence[Sequence[int]],
    magnitudes: Tensor,
    indices: Tensor,
) -> None:
    """The r-th largest |τ_k|, of equal ones the first counting as larger, and its index + 1; (∞, 0) for r = 0.

    base, models: [N]; ranks: K lists of R, each 0 … N; magnitudes: float64 [K, R]; indices: int64 [K, R].
    """
    for k, tau in enumerate(task_vectors(base, models)):
        order = torch.sort(magnitude_keys(tau), descending=True, stable=True).indices
        for i, rank in enumerate(ranks[k]):
            magnitudes[k, i] = tau[order[rank - 1]].abs() if rank else torch.inf
            indices[k, i] = order[rank - 1] + 1 if rank else 0
