"""Each op in PyTorch as a competent user writes it. Bits stay unpacked bools: packing them is left to us alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

CHUNK = 1 << 18  # elements; their float32 temporaries stay in the cache

Peer = Callable[..., Any]


def elect(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    taus = torch.stack([m.float() for m in models]) - base.float()
    up = taus.sum(0) > 0
    agree = torch.where(up, taus > 0, taus < 0)
    magnitude = torch.where(agree, taus.abs(), 0).amax(0)
    unified = torch.where(up, magnitude, -magnitude).to(base.dtype)
    kept = torch.where(agree, magnitude, 0)
    return unified, agree, taus.abs().sum(1, dtype=torch.float64), kept.sum(1, dtype=torch.float64)


def modulate(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    unified, mask = models[0], models[1] > 0
    return ((base.float() + 1.3 * torch.where(mask, unified.float(), 0)).to(base.dtype),)


def mask_against(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    merged = models[0].float()
    taus = torch.stack([m.float() for m in models]) - base.float()
    agree = torch.where(merged > 0, taus > 0, (taus < 0) & (merged < 0))
    kept = torch.where(agree, merged.abs(), 0)
    return agree, taus.abs().sum(1, dtype=torch.float64), kept.sum(1, dtype=torch.float64)


def combine(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    wide = base.float()
    delta = torch.zeros_like(wide)
    for model in models:
        delta += 0.3 * (model.float() - wide)
    return ((wide + delta).to(base.dtype),)


def delta_sum(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    wide = base.float()
    delta = torch.zeros_like(wide)
    for model in models:
        delta += 0.3 * (model.float() - wide)
    return (delta,)


def moments(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    taus = torch.stack([m.float() for m in models]) - base.float()
    double = torch.float64
    return (
        taus.abs().sum(1, dtype=double),
        taus.sum(1, dtype=double),
        taus.square().sum(1, dtype=double),
        taus.abs().amax(1),
    )


def inner_products(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    g = base.float()
    return tuple(torch.dot(g, m.float()) for m in models) + tuple(torch.dot(m.float(), m.float()) for m in models)


def magnitude_histogram(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    wide = base.float()
    return tuple(torch.bincount((m.float() - wide).abs().view(torch.int32) >> 20, minlength=2048) for m in models)


def kthvalue(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    wide = base.float()
    return tuple(torch.kthvalue((m.float() - wide).abs(), base.numel() * 4 // 5).values for m in models)


def sort(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    wide = base.float()
    return tuple(torch.sort((m.float() - wide).abs()).values for m in models)


def topk(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    tau = models[0].float() - base.float()
    indices = torch.topk(tau.abs(), base.numel() // 100).indices
    return indices, tau[indices].to(base.dtype)


def index_add(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    indices = torch.arange(0, base.numel(), 100)
    return (models[0].index_add_(0, indices, base[: indices.numel()], alpha=0.5),)


def ranks(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A rank's probability by sorting twice, and PyTorch's own random numbers."""
    kept = []
    for model in models:
        size = (model.float() - base.float()).abs().view(-1, 4096)
        rank = size.argsort(1).argsort(1)
        kept.append(torch.rand_like(size) >= 0.6 - 0.2 / 4095 * rank)
    return tuple(kept)


OF_WHOLE_TENSORS: dict[str, dict[str, Peer]] = {
    "kth_magnitude": {"kthvalue": kthvalue, "sort": sort},
    "rank_drop": {"argsort twice": ranks},
    "extract_topk": {"topk": topk},
    "scatter_add": {"index_add_": index_add},
}


def ways(op: str) -> dict[str, Peer]:
    """The op whole, in chunks, and compiled; the ways there are of doing what cannot be chunked."""
    if op in OF_WHOLE_TENSORS:
        return OF_WHOLE_TENSORS[op]
    whole: Peer = globals()[op]

    def chunked(base: Tensor, models: Sequence[Tensor]) -> list[Any]:
        pieces = zip(base.split(CHUNK), *(m.split(CHUNK) for m in models), strict=True)
        return [whole(piece[0], piece[1:]) for piece in pieces]

    return {"eager": whole, "eager, chunked": chunked, "torch.compile": torch.compile(whole, dynamic=False)}
