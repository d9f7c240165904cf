"""Random drops whose probability depends on the rank of a magnitude in its row (DELLA, Deep et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .magnitude import magnitude_keys
from .numeric import task_vectors
from .pack_bits import pack_bits
from .philox import philox


def rank_drop(
    base: Tensor,
    models: Sequence[Tensor],
    columns: int,
    keys: Sequence[int],
    thresholds: Sequence[Tensor],
    start: int,
    stop: int,
    masks: Tensor,
) -> None:
    """Keep element i where philox(i, key_k) ≥ thresholds_k[its rank in its row], the smallest magnitude having rank 0.

    base, models: [N]; columns: of a row; keys: K ints; thresholds: K times int64 [columns], 0 … 2^32; masks: uint8
    [K, ceil((stop − start)/8)], packed, of elements start … stop. Of equal magnitudes the first has the lower rank.
    """
    rows = slice(start // columns * columns, -(-stop // columns) * columns)
    index = torch.arange(start, stop, device=base.device)
    for k, tau in enumerate(task_vectors(base[rows], [m[rows] for m in models])):
        order = torch.sort(magnitude_keys(tau).view(-1, columns), stable=True).indices
        limits = torch.empty_like(order)
        limits.scatter_(1, order, thresholds[k].expand_as(order).contiguous())
        pack_bits(philox(index, keys[k]) >= limits.flatten()[start - rows.start : stop - rows.start], masks[k])
