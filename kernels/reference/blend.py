"""A sum of task vectors whose weights differ between the rows, or the columns, of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

from .numeric import narrow, task_vectors


def blend(base: Tensor | None, models: Sequence[Tensor], weights: Tensor, inner: int, offset: int, out: Tensor) -> int:
    """out = base + Σ_k w[k, g(i)] · τ_k in the order of k, for element i of the tensor, g(i) = (i // inner) mod G.

    weights: float32 or float64 [K, G]; offset: the index in its tensor of the first element. Without a base τ_k is θ_k.
    Returns the number of non-finite results.
    """
    taus = task_vectors(base, models)
    index = torch.arange(offset, offset + out.numel(), device=out.device)
    group = index // inner % weights.shape[1]
    delta = reduce(add, [own.to(tau.dtype)[group] * tau for own, tau in zip(weights, taus, strict=True)])
    if base is not None:
        delta = base.to(delta.dtype) + delta
    out.copy_(narrow(delta, out.dtype))
    return int((~out.isfinite()).sum())
