"""Masks and rescaler sums for a vector merged by another method (Huang et al. 2024, Table 7), TALL masks among them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .numeric import add_block_sums, task_vectors, working_dtype
from .pack_bits import pack_bits


def mask_against(
    base: Tensor,
    models: Sequence[Tensor],
    merged: Tensor,
    tall: Sequence[float] | None,
    masks: Tensor,
    sums: Tensor,
) -> None:
    """mask_k = 1 where τ_k and the merged task vector have the same non-zero sign.

    tall: K numbers; then mask_k = 1 where |τ_k| ≥ tall_k · |τ_m − τ_k| (TALL-masks, Wang et al. 2024).

    base, models, merged: [N], merged a task vector τ_m; masks: uint8 [K, ceil(N/8)]; sums: float64 [2, K], to which
    Σ|τ_k| and Σ mask_k · |τ_m| are added.
    """
    wide = merged.to(working_dtype([base, *models, merged]))
    for k, model in enumerate(models):
        tau = task_vectors(base.to(wide.dtype), [model])[0]
        if tall is None:
            mask = ((tau > 0) & (wide > 0)) | ((tau < 0) & (wide < 0))
        else:
            mask = tau.abs() >= torch.tensor(tall[k], dtype=wide.dtype) * (wide - tau).abs()
        pack_bits(mask, masks[k])
        add_block_sums(sums[0, k], tau.abs())
        add_block_sums(sums[1, k], torch.where(mask, wide.abs(), 0))
