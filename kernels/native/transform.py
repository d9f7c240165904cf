"""How a discrete Fourier transform of n numbers is made up, and the tables of roots of unity that it needs."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_RADIX = 127  # as in transform.hpp: a convolution is faster from about there on
UNROLLED = 13  # as in fft.hpp: larger ones leave out what is zero or not wanted


@dataclass(frozen=True, slots=True)
class Transform:
    """Steps by these radices, the last of them first; or, with an inner one, a cyclic convolution of its length.

    tables: [numbers, 2]. Per radix the roots of unity, if it is odd, and then the twiddles of its step; or the chirp
    and the transform of its conjugate.
    """

    n: int
    radices: tuple[int, ...]
    tables: Tensor
    inner: Transform | None = None

    @property
    def described(self) -> tuple[int, tuple[int, ...], int]:
        return self.n, self.radices, self.tables.data_ptr()


@functools.lru_cache(maxsize=32)
def transform(n: int, dtype: torch.dtype, back: bool = False) -> Transform:
    """Of n ≥ 1 numbers whose real and imaginary parts are of that dtype; `back`: of those of which few are not zero."""
    radices = factors(n, back)
    return (
        Transform(n, radices, _twiddles(n, radices, dtype))
        if max(radices, default=1) <= MAX_RADIX
        else _chirped(n, dtype)
    )


def factors(n: int, back: bool = False) -> tuple[int, ...]:
    """The radices: eights, and fours where eights would leave a two; odd primes.

    An eight is first and another last, if there are two: of these steps what is not wanted or zero is left out. Of
    large primes most is, so that these are first, where few numbers are wanted, or last, on the way `back` from few.
    """
    twos = (n & -n).bit_length() - 1
    eights, rest = divmod(twos, 3)
    if rest == 1 and eights:
        eights, rest = eights - 1, 4
    found = [*{0: [], 1: [2], 2: [4], 4: [4, 4]}[rest], *[8] * eights]
    odd, prime = n >> twos, 3
    while odd > 1:
        if prime * prime > odd:
            prime = odd
        if odd % prime:
            prime += 2
        else:
            odd //= prime
            found.append(prime)
    if found.count(8) > 1:
        others = [radix for radix in found if radix != 8]
        found = [8, *others, *[8] * (found.count(8) - 1)]
    large = [radix for radix in found if radix > UNROLLED]
    others = [radix for radix in found if radix <= UNROLLED]
    return tuple(others + large if back else large + others)


def roots(indices: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """exp(−2πi · index / n): [indices, 2]."""
    angles = (-2 * math.pi / n) * (indices.flatten() % n).to(torch.float64)
    return torch.stack((angles.cos(), angles.sin()), 1).to(dtype)


def _twiddles(n: int, radices: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    tables, size = [torch.empty(0, 2, dtype=dtype)], n
    for radix in radices:
        size, whole = size // radix, size
        if radix % 2:
            tables.append(roots(torch.arange(radix), radix, dtype))
        if size > 1:
            tables.append(roots(torch.arange(size)[:, None] * torch.arange(1, radix), whole, dtype))
    return torch.cat(tables)


def _chirped(n: int, dtype: torch.dtype) -> Transform:
    """X_k = c_k · Σ_m (x_m c_m) · conj(c)_(k−m), c_m = exp(−πi·m² / n): a convolution (Bluestein 1970)."""
    size = 1 << (2 * n - 2).bit_length()
    chirp = roots(torch.arange(n) ** 2, 2 * n, torch.float64)
    conjugate = torch.view_as_complex(chirp).conj()
    padded = torch.zeros(size, dtype=torch.complex128)
    padded[:n] = conjugate
    padded[size - n + 1 :] = conjugate[1:].flip(0)
    filtered = torch.view_as_real(torch.fft.fft(padded) / size)
    return Transform(n, (), torch.cat((chirp, filtered)).to(dtype), transform(size, dtype))
