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


def blend(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Rows of 2048 elements, each with a weight of its own."""
    wide = base.float().view(-1, 2048)
    weights = torch.full((len(wide), 1), 0.3, device=base.device)
    delta = torch.zeros_like(wide)
    for model in models:
        delta += weights * (model.float().view(-1, 2048) - wide)
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


def row_gram(base: Tensor, models: Sequence[Tensor]) -> Tensor:
    rows = torch.stack([(m.float() - base.float()).view(-1, 2048) for m in models], 1)
    return rows @ rows.mT


def row_divergence(base: Tensor, models: Sequence[Tensor]) -> Tensor:
    p, q = (x.double().view(-1, 2048).softmax(1) + 1e-8 for x in (models[0], base))
    return (p * (p / q).log()).sum(1)


def variance(base: Tensor, models: Sequence[Tensor]) -> Tensor:
    return (torch.stack([m.float() for m in models]) - base.float()).var(0, correction=0)


def compete(base: Tensor, models: Sequence[Tensor]) -> Tensor:
    taus = torch.stack([m.float() for m in models]) - base.float()
    sizes = taus[0].abs().clamp(0, 0.05)
    return (len(models) * (sizes / 0.05).square()).exp() * (taus[0].sign() * sizes * taus.sum(0)).tanh().clamp(min=0)


def balance(base: Tensor, models: Sequence[Tensor]) -> Tensor:
    taus = torch.stack([m.float() for m in models]) - base.float()
    sizes = taus.abs().clamp(0, 0.05)
    scores = (len(models) * (sizes / 0.05).square()).exp() * (taus.sign() * sizes * taus.sum(0)).tanh().clamp(min=0)
    shares = (scores - 0.001).clamp(min=0) / 0.019
    return (base.float() + (shares * taus.sign() * sizes).sum(0) / shares.sum(0).clamp(min=1e-30)).to(base.dtype)


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
    indices = torch.arange(0, base.numel(), 100, device=base.device)
    return (models[0].index_add_(0, indices, base[: indices.numel()], alpha=0.5),)


def index_select(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (models[0].index_select(0, torch.arange(0, base.numel(), 100, device=base.device)),)


def index_copy(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    indices = torch.arange(0, base.numel(), 100, device=base.device)
    return (models[0].index_copy_(0, indices, base[: indices.numel()]),)


def kept_sums(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    sizes = [(m.float() - base.float()).abs() for m in models]
    return tuple(s.sum(dtype=torch.float64) for s in (*sizes, *(torch.where(s > 0.0128, s, 0) for s in sizes)))


def trim_and_vote(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """TIES-Merging, given the thresholds."""
    wide = base.float()
    terms = torch.stack([m.float() - wide for m in models])
    return _voted(base, wide, torch.where(terms.abs() > 0.0128, 0.3 * terms, 0))


def drop_and_vote(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """DARE-TIES."""
    wide = base.float()
    terms = torch.stack([0.3 * (m.float() - wide) * torch.bernoulli(torch.full_like(wide, 0.5)) for m in models])
    return _voted(base, wide, terms)


def _voted(base: Tensor, wide: Tensor, terms: Tensor) -> tuple[Tensor, ...]:
    agree = terms.sign() == torch.where(terms.sum(0) < 0, -1.0, 1.0)
    merged = torch.where(agree, terms, 0).sum(0) / (0.3 * agree.sum(0)).clamp(min=0.3)
    return ((wide + merged).to(base.dtype),)


def drop(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """DARE."""
    wide = base.float()
    delta = torch.zeros_like(wide)
    for model in models:
        delta += 0.3 * (model.float() - wide) * torch.bernoulli(torch.full_like(wide, 0.5))
    return ((wide + delta).to(base.dtype),)


def rank_drop(base: Tensor, models: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """DELLA's drop, by an argsort of an argsort."""
    wide = base.float().view(-1, 2048)
    chances = torch.linspace(0.3, 0.7, 2048, device=base.device)
    ranks = ((m.float().view(-1, 2048) - wide).abs().argsort(1).argsort(1) for m in models)
    return tuple(torch.rand_like(wide) < chances[rank] for rank in ranks)


def low_rank(base: Tensor, _: Sequence[Tensor]) -> Tensor:
    rows, columns = base.numel() // 2048, 2048
    up, down = (torch.randn(shape, device=base.device) for shape in [(rows, 16), (16, columns)])  # takes little
    return (base.view(rows, columns).float() + 0.5 * (up @ down)).to(base.dtype)


NAMED = {"combine, trim and vote": trim_and_vote, "combine, drop": drop, "combine, drop and vote": drop_and_vote}
OF_WHOLE_TENSORS: dict[str, dict[str, Peer]] = {
    "kth_magnitude": {"kthvalue": kthvalue, "sort": sort},
    "extract_topk": {"topk": topk},
    "low_rank": {"matmul": low_rank},
    "rank_drop": {"two argsorts": rank_drop},
    "scatter_add": {"index_add_": index_add},
    "gather": {"index_select": index_select},
    "scatter": {"index_copy_": index_copy},
}


def distances(h: int, w: int, device: torch.device) -> Tensor:
    """Of the bins of the half-spectrum from the frequency zero."""
    return torch.hypot(torch.fft.fftfreq(h, 1 / h, device=device)[:, None], torch.fft.rfftfreq(w, 1 / w, device=device))


def highpass(x: Tensor, cutoff: float = 0.3) -> Tensor:
    h, w = x.shape
    spectrum = torch.fft.rfft2(x.float())
    spectrum *= distances(h, w, x.device) >= cutoff * min(h, w) / 2
    # Two steps, with a copy between: irfft2 is slower, for the strides that its first step leaves.
    return torch.fft.irfft(torch.fft.ifft(spectrum, dim=0).contiguous(), n=w)


def highpass_merge(base: Tensor, models: Sequence[Tensor], cutoff: float = 0.3) -> Tensor:
    """One filter, of the weighted sum."""
    return (base.float() + highpass(delta_sum(base, models)[0], cutoff)).to(base.dtype)


def highpass_each(base: Tensor, models: Sequence[Tensor], cutoff: float = 0.3) -> Tensor:
    """A filter of each task vector by the complex transform and its shifts, as code written from the paper has it."""
    h, w = base.shape
    y, x = (torch.arange(n, device=base.device) - n // 2 for n in (h, w))
    merged = base.float()
    for model in models:
        spectrum = torch.fft.fftshift(torch.fft.fft2(model.float() - base.float()))
        kept = spectrum * (torch.sqrt(y[:, None] ** 2 + x**2) >= cutoff * min(h, w) / 2)
        merged = merged + 0.3 * torch.fft.ifft2(torch.fft.ifftshift(kept)).real
    return merged.to(base.dtype)


def ways(op: str) -> dict[str, Peer]:
    """The op whole, in chunks, and compiled; the ways there are of doing what cannot be chunked."""
    if op in OF_WHOLE_TENSORS:
        return OF_WHOLE_TENSORS[op]
    whole: Peer = NAMED.get(op) or globals()[op]

    def chunked(base: Tensor, models: Sequence[Tensor]) -> list[Any]:
        pieces = zip(base.split(CHUNK), *(m.split(CHUNK) for m in models), strict=True)
        return [whole(piece[0], piece[1:]) for piece in pieces]

    return {"eager": whole, "eager, chunked": chunked, "torch.compile": torch.compile(whole, dynamic=False)}
