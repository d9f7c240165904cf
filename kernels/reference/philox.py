"""Random numbers that depend on nothing but a key and an element's index: Philox4x32-10 (Salmon et al. 2011)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LOW = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
STEPS = (0x9E3779B9, 0xBB67AE85)  # of the key, from round to round


def philox(indices: Tensor, key: int) -> Tensor:
    """The word of each element: word i mod 4 of the counter (i >> 2, 0, 0) under the 64-bit key.

    indices: int64, not negative; the words are int64 too, 0 … 2^32 − 1.
    """
    counter = indices >> 2
    words = philox4x32((counter & LOW, counter >> 32, torch.zeros_like(counter), torch.zeros_like(counter)), key)
    return torch.stack(words).gather(0, (indices & 3).unsqueeze(0)).squeeze(0)


def philox4x32(counter: Sequence[Tensor], key: int) -> tuple[Tensor, ...]:
    """Ten rounds; counter and result are four words each, the lowest first, as int64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & LOW, key >> 32
    for _ in range(10):
        (high0, low0), (high1, low1) = _product(c0, MULTIPLIERS[0]), _product(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + STEPS[0]) & LOW, (k1 + STEPS[1]) & LOW
    return c0, c1, c2, c3


def _product(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Both halves of the 64-bit product of two words, the second above 2^31: less 2^32 int64 holds the product."""
    less = word * (factor - 2**32)
    return (less >> 32) + word, less & LOW
