"""What selects by magnitude held to the reference, of the cuda backend, wherever its kernels run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastmerge.kernels import cuda, reference
from selections import thresholds
from tensors import BF16, F16, F32, F64, assert_same_bits, make
from torch import Tensor

PAIRS = [(BF16, BF16), (F16, F32), (F32, F16), (F32, F32), (F64, BF16), (F32, F64)]


def pair(dtypes: tuple[torch.dtype, torch.dtype], n: int, shift: int = 0) -> tuple[Tensor, Tensor]:
    """A base and a model with zeros, infinities and NaN, `shift` elements past an aligned address."""
    base, model = (make(n + shift, d, seed=n + i)[shift:] for i, d in enumerate(dtypes))
    return base, model


def cuts(backend: object, base: Tensor, models: list[Tensor], ranks: list[int]) -> tuple[Tensor, Tensor]:
    magnitudes = torch.empty(len(models), len(ranks), dtype=F64)
    indices = torch.empty(len(models), len(ranks), dtype=torch.int64)
    backend.kth_magnitude(base, models, [ranks] * len(models), magnitudes, indices)  # type: ignore[attr-defined]
    return magnitudes, indices


def assert_same_cuts(base: Tensor, models: list[Tensor], ranks: list[int]) -> None:
    actual, expected = (cuts(backend, base, models, ranks) for backend in (cuda, reference))
    assert_same_bits(actual[0], expected[0], "magnitudes")
    assert torch.equal(actual[1], expected[1])


def expert(
    backend: object, base: Tensor, model: Tensor, cut: tuple[float, int], room: int, out: torch.dtype
) -> tuple[int, Tensor, Tensor, Tensor]:
    counts = torch.full((-(-base.numel() // 65_536),), -1, dtype=torch.int32)
    offsets, values = torch.zeros(room, dtype=torch.uint16), torch.zeros(room, dtype=out)
    found = backend.extract_topk(base, model, *cut, counts, offsets, values)  # type: ignore[attr-defined]
    return found, counts, offsets.view(torch.int16), values


def assert_same_expert(base: Tensor, model: Tensor, cut: tuple[float, int], room: int, out: torch.dtype) -> None:
    actual, expected = (expert(backend, base, model, cut, room, out) for backend in (cuda, reference))
    assert actual[0] == expected[0]
    for name, mine, theirs in zip(("counts", "offsets", "values"), actual[1:], expected[1:], strict=True):
        assert_same_bits(mine, theirs, name)


def assert_same_experts(base: Tensor, model: Tensor, ranks: list[int]) -> None:
    """Above cuts of ranks, between equal magnitudes, at the ends; with room for all, for some, and for none."""
    n = base.numel()
    magnitudes, indices = cuts(reference, base, [model], ranks)
    found = list(zip(magnitudes[0].tolist(), indices[0].tolist(), strict=True))
    for cut in (*found, (0.25, n // 3), (torch.inf, n), (torch.nan, 1), (-1.0, 0), (0.1, 0)):
        assert_same_expert(base, model, cut, n, base.dtype)
    assert_same_expert(base, model, (0.25, 0), n // 9, BF16)
    assert_same_expert(base, model, (0.25, 0), 0, F16)


def assert_same_histograms(base: Tensor, model: Tensor) -> None:
    """Of the highest bits, of lower ones, of those under a prefix, and in float64."""
    bits = 63 if F64 in (base.dtype, model.dtype) else 31
    for shift, width, prefix, wide in (
        (bits - 11, 11, None, False),
        (3, 13, None, False),
        (bits - 21, 10, [1022 if bits == 63 else 1016], False),
        (52, 11, None, True),
    ):
        counts = [torch.ones(1, 1 << width, dtype=torch.int64) for _ in range(2)]
        cuda.magnitude_histogram(base, [model], shift, width, prefix, wide, counts[0])
        reference.magnitude_histogram(base, [model], shift, width, prefix, wide, counts[1])
        assert torch.equal(*counts)


def assert_same_drops(base: Tensor, model: Tensor, columns: int, kinds: Sequence[str] = ("near", "far")) -> None:
    """By ranks in rows, which parts of long tensors cut. kinds: of thresholds; all, where none is given."""
    n = base.numel()
    far = thresholds(columns, 0.5, 0.99)
    tables = {
        "near": thresholds(columns, 0.5, 0.02),
        "far": far,
        "rising": torch.linspace(0, 1 << 32, columns, dtype=F64).long(),
        "unordered": far[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))],
        **{str(same): torch.full((columns,), same) for same in (0, 1 << 31, 1 << 32)},
    }
    for kind in kinds or tables:
        start, stop = (65_536, n - 3) if n > 65_536 else (0, n)
        masks = [torch.full((1, -(-(stop - start) // 8)), 0x5A, dtype=torch.uint8) for _ in range(2)]
        for backend, own in zip((cuda, reference), masks, strict=True):
            backend.rank_drop(base, [model], columns, [(1 << 64) - 123_456_789], [tables[kind]], start, stop, own)
        assert torch.equal(*masks), (columns, kind)
