"""Magnitudes: histograms, cuts and ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import dispatch
from ..arrays import takes_arrays
from ..errors import InputError
from ._arguments import _accumulator, _check, _check_buffer, _Flat, _flat, _flat_all, _numbered, working_dtype
from .records import BLOCK, packed_bytes
from .results import Cut

if TYPE_CHECKING:
    from torch import Tensor

TOP_BITS = 11  # of magnitudes, that histograms count by
MAX_BIN_BITS = 13


@takes_arrays()
def magnitude_histogram(
    base: Tensor,
    models: Sequence[Tensor],
    *,
    shift: int | None = None,
    bits: int = TOP_BITS,
    prefixes: Sequence[int] | None = None,
    wide: bool = False,
    counts: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """How many |τ_k| there are by `bits` (1 … 13) bits of them, as integers: int64 [K, 2^bits].

    Magnitudes have 31 bits in float32; in float64, or if `wide`, 63. The highest are counted by unless `shift` says how
    many stand below those counted by; with `prefixes`, K numbers, only magnitudes whose bits above are these. `counts`
    is added to: wide histograms of a model's tensors add up to the whole model's, whatever their dtypes.
    """
    import torch

    _check("magnitude_histogram", {"base": base, **_numbered(models)})
    key_bits = _key_bits(base, models, wide)
    shift = key_bits - bits if shift is None else shift
    if not 1 <= bits <= MAX_BIN_BITS or not 0 <= shift <= key_bits - bits:
        raise InputError(
            f"magnitude_histogram: shift {shift} and bits {bits} must be 1 to {MAX_BIN_BITS} of {key_bits} bits"
        )
    if prefixes is not None and len(prefixes) != len(models):
        raise InputError(f"magnitude_histogram: {len(models)} models need as many prefixes, there are {len(prefixes)}")
    for prefix in prefixes or ():
        if not 0 <= prefix < 1 << (key_bits - bits - shift):
            raise InputError(f"magnitude_histogram: prefix {prefix} has not the {key_bits - bits - shift} bits above")
    counts = _accumulator(counts, (len(models), 1 << bits), base, torch.int64, "counts")
    kernel = dispatch.choose("magnitude_histogram", base.device, backend)
    kernel(_flat(base), _flat_all(models), shift, bits, prefixes, wide, counts)
    return counts


@takes_arrays()
def kth_magnitude(
    base: Tensor,
    models: Sequence[Tensor],
    ranks: Sequence[Sequence[int]],
    *,
    backend: str | None = None,
) -> list[list[Cut]]:
    """For each model the cuts that have exactly so many elements above them: exact, without sorting.

    ranks: for each model as many, of 0 … N.
    The cut of rank 0 is (∞, 0). NaN count as larger than infinity, but nothing is above a cut at NaN.
    """
    import torch

    _check("kth_magnitude", {"base": base, **_numbered(models)})
    _check_ranks(ranks, len(models), base.numel())
    shape = len(models), len(ranks[0])
    magnitudes, indices = base.new_empty(shape, dtype=torch.float64), base.new_empty(shape, dtype=torch.int64)
    kernel = dispatch.choose("kth_magnitude", base.device, backend)
    kernel(_flat(base), _flat_all(models), [list(row) for row in ranks], magnitudes, indices)
    rows = zip(magnitudes.tolist(), indices.tolist(), strict=True)
    return [[Cut(*cut) for cut in zip(*row, strict=True)] for row in rows]


@takes_arrays()
def rank_drop(
    base: Tensor,
    models: Sequence[Tensor],
    columns: int,
    keys: Sequence[int],
    thresholds: Sequence[Tensor],
    *,
    start: int = 0,
    stop: int | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Packed masks uint8 [K, ceil((stop - start)/8)] of a random choice by rank (DELLA, Deep et al. 2024, Section 3.1).

    base, models: whole tensors, in rows of `columns` elements; keys: for each model the 64-bit key of its random words;
    thresholds: for each model int64 [columns], 0 … 2^32. An element is dropped where its word is below the threshold of
    its rank in its row, the smallest magnitude having rank 0 and of equal ones the first the lower. `start`, a multiple
    of BLOCK, and `stop` choose the elements that masks are wanted of; rows that they cut are ranked whole. As many rows
    as end together on a byte have fewer than 2^32 elements.
    """
    import torch

    _check("rank_drop", {"base": base, **_numbered(models)})
    n, k = base.numel(), len(models)
    stop = n if stop is None else stop
    problems = []
    if not 1 <= columns < 1 << 31 or n % columns:
        problems.append(f"rank_drop: {n} elements are not rows of {columns}")
    elif (together := min(n, columns * (8 // math.gcd(columns, 8)))) >= 1 << 32:  # their positions have 32 bits
        problems.append(f"rank_drop: as many rows of {columns} as end on a byte have {together} elements, 2^32 or more")
    if not 0 <= start <= stop <= n or start % BLOCK:
        problems.append(f"rank_drop: start {start} (a multiple of {BLOCK}) and stop {stop} must be in order in 0 … {n}")
    if len(keys) != k or len(thresholds) != k:
        problems.append(f"rank_drop: {k} models need as many keys and thresholds, not {len(keys)}, {len(thresholds)}")
    if any(not 0 <= key < 1 << 64 for key in keys):
        problems.append("rank_drop: keys must be of 64 bits")
    if problems:
        raise InputError(problems)
    for i, limits in enumerate(thresholds):
        _check_buffer(f"thresholds[{i}]", limits, (columns,), torch.int64, base.device)
        if not 0 <= int(limits.min()) <= int(limits.max()) <= 1 << 32:
            raise InputError(f"rank_drop: thresholds[{i}] must be in 0 … 2^32")
    shape = k, packed_bytes(stop - start)
    masks = base.new_empty(shape, dtype=torch.uint8) if out is None else out
    _check_buffer("out", masks, shape, torch.uint8, base.device)
    kernel = dispatch.choose("rank_drop", base.device, backend)
    with _Flat(masks, shape) as flat:
        kernel(
            _flat(base),
            _flat_all(models),
            columns,
            keys,
            [limits.contiguous() for limits in thresholds],
            start,
            stop,
            flat,
        )
    return masks


def _key_bits(base: Tensor, models: Sequence[Tensor], wide: bool) -> int:
    """How many bits a magnitude has."""
    return 63 if wide or working_dtype([base, *models]).itemsize == 8 else 31


def _check_ranks(ranks: Sequence[Sequence[int]], models: int, n: int) -> None:
    if len(ranks) != models or len({len(row) for row in ranks}) != 1:
        raise InputError(f"kth_magnitude: ranks must be {models} lists of equal length, one a model, not {ranks}")
    for k, row in enumerate(ranks):
        for rank in row:
            if not 0 <= rank <= n:
                raise InputError(f"kth_magnitude: rank {rank} of models[{k}] is not one of 0 to {n}, its elements")
