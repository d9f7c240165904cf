"""How many magnitudes fall into each bin: what thresholds are found by without sorting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .magnitude import magnitude_keys
from .numeric import task_vectors


def magnitude_histogram(
    base: Tensor,
    models: Sequence[Tensor],
    shift: int,
    bits: int,
    prefixes: Sequence[int] | None,
    wide: bool,
    counts: Tensor,
) -> None:
    """Count |τ_k| by bits shift … shift + bits of its key, only where prefix_k stands above them if prefixes are given.

    base, models: [N]; counts: int64 [K, 2^bits], added to.
    """
    for k, tau in enumerate(task_vectors(base, models)):
        keys = magnitude_keys(tau, wide)
        if prefixes is not None:
            keys = keys[keys >> (shift + bits) == prefixes[k]]
        counts[k] += torch.bincount((keys >> shift) & (2**bits - 1), minlength=2**bits)
