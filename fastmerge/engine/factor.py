"""A matrix as the product of two thin ones, by singular values: exact where it is small, randomised where it is large.

Halko, Martinsson & Tropp 2011, "Finding structure with randomness" (arXiv 0909.4061), algorithms 4.4 and 5.1.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

EXACT = 1024  # of the shorter side, up to which the whole decomposition is cheap
OVERSAMPLING, ITERATIONS = 16, 2


class Factored(NamedTuple):
    """up [H, r] · down [r, W], and which part of the matrix's energy, Σ x², it keeps (1 of a matrix of zeros)."""

    up: Tensor
    down: Tensor
    kept: float


def factor(matrix: Tensor, rank: int, seed: int, name: str) -> Factored:
    """The product of this rank that comes nearest; r is `rank`, or the shorter side. The root of each singular value
    goes to either side.

    matrix: [H, W], float32 or float64, finite. One seed and name give the same factors on one machine.
    """
    rank = min(rank, *matrix.shape)
    if min(matrix.shape) <= max(EXACT, 2 * (rank + OVERSAMPLING)):
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    else:
        u, s, v = _randomised(matrix, rank + OVERSAMPLING, _generator(seed, name))
    u, s, v = u[:, :rank], s[:rank], v[:rank]
    total = float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2
    kept = min(1.0, float((s.double() ** 2).sum()) / total) if total else 1.0
    root = s.sqrt()
    return Factored(u * root, root[:, None] * v, kept)


def _randomised(matrix: Tensor, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The decomposition within the range that some random vectors are mapped to, again and again."""
    noise = torch.randn(matrix.shape[1], width, generator=generator, dtype=matrix.dtype)
    q = torch.linalg.qr(matrix @ noise).Q
    for _ in range(ITERATIONS):
        q = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.t() @ q).Q).Q
    u, s, v = torch.linalg.svd(q.t() @ matrix, full_matrices=False)
    return q @ u, s, v


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
