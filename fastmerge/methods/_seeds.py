"""Random drops depend on names alone: the key of a tensor's random words, and what these are compared with."""

from __future__ import annotations

import hashlib
from fractions import Fraction


def philox_key(seed: int, method: str, tensor: str, model: str) -> int:
    """The 64-bit Philox key: the first 8 bytes, little-endian, of BLAKE2b over the four as UTF-8 texts.

    Each text is preceded by its length in 8 bytes, little-endian, so that no two sets of names read the same.
    """
    digest = hashlib.blake2b()
    for text in (str(seed), method, tensor, model):
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return int.from_bytes(digest.digest()[:8], "little")


def drop_threshold(probability: Fraction) -> int:
    """⌊p · 2^32⌋: a random word of 32 bits is less with that probability."""
    return (probability.numerator << 32) // probability.denominator
