"""Tensors to test with: every special value, ties, misaligned memory, and comparison to the bit."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmerge.ops import BLOCK, Expert

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
DTYPES = (BF16, F16, F32, F64)
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
SPECIAL = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-40, -1e-40, 6e-8, 65504.0, -65504.0, 3.38e38, float("inf"), -float("inf"))


def make(n: int, dtype: torch.dtype, seed: int, *, special: bool = True, misaligned: bool = False) -> Tensor:
    """n values near 1, half on a grid coarse enough for ties; with `special` every eighth is zero, −0, infinite, …

    `misaligned` puts them at an odd address.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-40, 41, (n,), generator=generator).double() / 16
    x += torch.where(torch.rand(n, generator=generator) < 0.5, torch.randn(n, generator=generator).double(), 0)
    if special:
        which = torch.randint(0, len(SPECIAL), (n,), generator=generator)
        x = torch.where(torch.rand(n, generator=generator) < 0.125, torch.tensor(SPECIAL).double()[which], x)
        x = torch.where(torch.rand(n, generator=generator) < 0.01, torch.nan, x)
    x = x.to(dtype)
    return at_odd_address(x) if misaligned else x


def grid(n: int, dtype: torch.dtype, seed: int) -> Tensor:
    """n small multiples of 1/8: sums and differences of a few are exact in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-8, 9, (n,), generator=generator).double() / 8).to(dtype)


def at_odd_address(x: Tensor) -> Tensor:
    """The same values, one byte past an aligned address."""
    if not x.numel():
        return x
    raw = bytearray(1) + bytearray(x.contiguous().view(torch.uint8).numpy().tobytes())
    return torch.frombuffer(raw, dtype=x.dtype, offset=1)


def at_odd_place(x: Tensor) -> Tensor:
    """The same values, one element past an aligned address."""
    return torch.cat([x[:1], x])[1:]


def expert_of(where: Tensor, values: Tensor) -> Expert:
    """The expert that has `values` where `where` is true."""
    at = where.nonzero().flatten()
    blocks = -(-where.numel() // BLOCK)
    counts = torch.bincount(at // BLOCK, minlength=blocks).to(torch.int32)
    return Expert(counts, (at % BLOCK).to(torch.uint16), values[where])


def poisoned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory for a result, full of NaN (of ones, for bits)."""
    return torch.full(shape, 255 if dtype == torch.uint8 else torch.nan, dtype=dtype)


def assert_same_bits(actual: Tensor, expected: Tensor, what: str) -> None:
    """Equal to the bit, −0 apart from +0; a NaN is any NaN."""
    assert actual.dtype == expected.dtype, what
    assert actual.shape == expected.shape, what
    word = WORDS[actual.element_size()]
    actual_bits, expected_bits = actual.contiguous().view(word), expected.contiguous().view(word)
    if torch.equal(actual_bits, expected_bits):
        return
    same = actual_bits == expected_bits
    if actual.is_floating_point():
        same |= actual.isnan() & expected.isnan()
    if not same.all():
        i = int((~same).flatten().nonzero()[0])
        raise AssertionError(
            f"{what}: {int((~same).sum())} of {same.numel()} differ, first at {i}: "
            f"{actual.flatten()[i].item()!r}, expected {expected.flatten()[i].item()!r}"
        )


def assert_sums(actual: Tensor, expected: Tensor, rtol: float, what: str) -> None:
    """Equal within rtol where finite, and non-finite together."""
    finite = expected.isfinite()
    assert torch.equal(actual.isfinite(), finite), f"{what}: {actual} and {expected}"
    assert torch.allclose(actual[finite], expected[finite], rtol=rtol, atol=0), f"{what}: {actual} and {expected}"
