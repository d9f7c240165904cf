"""Sums over the outer part of a matrix's spectrum: how strong task vectors are there, and how much they differ."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import ops

RINGS, PER_HALF = 60, 40  # how many, and how many of them go into half of a matrix's shorter side
ROWS = 16  # of a spectrum that are summed up at a time: they stay in the cache


class Rings(NamedTuple):
    """Sums over the bins from each ring's inner edge outward, and last over those that a filter keeps: [RINGS + 2].

    counts and variances (between the K amplitudes of a bin): [RINGS + 2]; amplitudes and powers: [K, RINGS + 2]. All
    float64, of the unitary transform. The last edge is the outer one of the last ring.
    """

    counts: Tensor
    amplitudes: Tensor
    powers: Tensor
    variances: Tensor


def measure(base: Tensor, models: Sequence[Tensor], limit: int) -> Rings:
    """The rings of the task vectors of a matrix [H, W]; the filter keeps squared distances of at least the limit.

    From ring j outward are the signed frequencies with √(η² + γ²) ≥ j / PER_HALF · min(H, W) / 2.
    """
    h, w = base.shape
    places = _places(h, w, limit)
    counts = _outward(torch.ones(()).expand(h, w // 2 + 1), places, w)
    amplitudes, powers = (torch.zeros(len(models), RINGS + 2, dtype=torch.float64) for _ in range(2))
    mean, spread = torch.zeros(()), torch.zeros(())
    for k, model in enumerate(models):
        amplitude = torch.fft.rfft2(ops.delta_sum(base, [model]), norm="ortho").abs()
        amplitudes[k], powers[k] = _outward(amplitude, places, w), _outward(amplitude, places, w, square=True)
        off = amplitude - mean
        mean = mean + off / (k + 1)
        spread = spread + off * amplitude.sub_(mean)
    return Rings(counts, amplitudes, powers, _outward(spread, places, w) / len(models))


@functools.lru_cache(maxsize=8)
def _places(h: int, w: int, limit: int) -> Tensor:
    """In each row of the half-spectrum, the first column from which on bins are beyond each edge: [H, RINGS + 2]."""
    y, x = torch.arange(h), torch.arange(w // 2 + 1)
    eta, gamma = torch.minimum(y, h - y) ** 2, x * x
    edges = [-(-((ring * min(h, w)) ** 2) // (2 * PER_HALF) ** 2) for ring in range(RINGS + 1)]
    return torch.searchsorted(gamma, torch.tensor([*edges, limit]) - eta[:, None])


def _outward(values: Tensor, places: Tensor, w: int, square: bool = False) -> Tensor:
    """Σ values (or their squares) from each place on, over all rows of the whole spectrum: [RINGS + 2].

    values: [H, W // 2 + 1], of which all columns but those that are their own mirror stand for two.
    """
    twice = torch.full((w // 2 + 1,), 2.0, dtype=torch.float64)
    twice[0] = 1
    twice[-1] = 1 if w % 2 == 0 else twice[-1]
    sums = torch.zeros(places.shape[1], dtype=torch.float64)
    for rows, firsts in zip(torch.split(values, ROWS), torch.split(places, ROWS), strict=True):
        wide = rows.double()
        before = torch.nn.functional.pad((wide * wide if square else wide).mul(twice).cumsum(1), (1, 0))
        sums += (before[:, -1:] - before.gather(1, firsts)).sum(0)
    return sums
