"""What selects by magnitude held to the reference, of the cuda backend, wherever its kernels run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

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


def placed(x: Tensor, device: str) -> Tensor:
    """The same values on a device, as far past an aligned address."""
    first = x.storage_offset()
    return x if device == "cpu" else torch.cat([x.new_zeros(first), x]).to(device)[first:]


def assert_same_drops(
    base: Tensor, model: Tensor, columns: int, kinds: Sequence[str] = ("near", "far"), device: str = "cpu"
) -> None:
    """By ranks in rows; of long tensors those of a part too, which cuts rows. kinds: of thresholds; all, where none is
    given. Tensors are on the CPU, and compared on a device."""
    n = base.numel()
    far = thresholds(columns, 0.5, 0.99)
    tables = {
        "near": thresholds(columns, 0.5, 0.02),
        "far": far,
        "rising": torch.linspace(0, 1 << 32, columns, dtype=F64).long(),
        "unordered": far[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))],
        **{str(same): torch.full((columns,), same) for same in (0, 1 << 31, 1 << 32)},
    }
    own = placed(base, device), [placed(model, device)]
    for kind, (start, stop) in product(kinds or tables, [(0, n), (65_536, n - 3)] if n > 65_536 else [(0, n)]):
        masks = [torch.full((1, -(-(stop - start) // 8)), 0x5A, dtype=torch.uint8) for _ in range(2)]
        masks[0] = masks[0].to(device)
        key, limits = (1 << 64) - 123_456_789, tables[kind]
        cuda.rank_drop(*own, columns, [key], [limits.to(device)], start, stop, masks[0])
        reference.rank_drop(base, [model], columns, [key], [limits], start, stop, masks[1])
        assert torch.equal(masks[0].cpu(), masks[1]), (columns, kind, start)


# Rows and columns: of tensors that a part of begins in the midst of a row, or ends there.
CUT = [(10_001, 7), (351, 200), (17, 4099), (5, 14_336), (2, 65_536)]


def check_drops(dtypes: tuple[torch.dtype, torch.dtype], rows: Sequence[tuple[int, int]], device: str) -> int:
    """By ranks in rows of all lengths and by all kinds of thresholds, of tensors that are aligned and that are not."""
    for count, columns in rows:
        assert_same_drops(*pair(dtypes, count * columns, shift=count % 2), columns, (), device)
    return len(rows)
