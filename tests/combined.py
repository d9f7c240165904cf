"""What combine, blend, kept_sums and low_rank must tell apart, and what their other cases have too few elements for."""

from __future__ import annotations

from itertools import product

import torch
from kept import PARTS, kept
from tensors import BF16, F16, F32, F64, assert_same_bits, assert_sums, make

from fastmerge import ops

N = 4133  # elements: more than kernels take at a time, and not a multiple
PLACES = (0, 1, 700, 2047, 2048, 2049, 5000)  # of a cut's index: in the first program, between two, in no program
# The least numbers that are rounded to infinity: by halves of the last place.
LIMITS = ((F32, F16, 65520.0), (F32, BF16, 2.0**128 - 2.0**119), (F64, F16, 65520.0), (F64, BF16, 2.0**128 - 2.0**119))
LIMITS += ((F64, F32, 2.0**128 - 2.0**103),)
# Rows and columns of a product, and which of its elements: whole tiles of rows and columns, parts, and rows that begin
# where wide loads may, or not.
PRODUCTS = [(20, 1024, 0, 20 * 1024), (9, 2064, 16, 9 * 2064 - 16), (13, 1000, 700, 9001), (17, 528, 5000, 64)]
PRODUCTS += [(40, 1, 3, 30), (1, 3000, 0, 3000), (5, 37, 1, 1)]


def check_selections(backend: str, device: str) -> int:
    """Cuts whose indices divide a program's elements, or do not, top and bottom; and every part of a selection."""
    inputs = [(make(N, BF16, seed) * 8).round() / 8 for seed in range(3)]  # many of equal magnitude
    placed = [t.to(device) for t in inputs]
    top, bottom = 1.5, 0.25
    trims = [
        [ops.Window(None if high is None else ops.Cut(top, high), ops.Cut(bottom, low))] * 2
        for high, low in product((None, *PLACES), PLACES)
    ]
    chosen = [(ops.Kept(trim=trim), ops.Kept(trim=trim)) for trim in trims]
    chosen += [tuple(kept(t[0], t[1:], 0, parts) for t in (inputs, placed)) for parts in PARTS[1:]]  # type: ignore[misc]
    for expected, own in chosen:
        a, b = (
            ops.combine(t[0], t[1:], consensus="weighted", merge="mean", kept=selection, backend=name)
            for t, selection, name in ((inputs, expected, "reference"), (placed, own, backend))
        )
        assert_same_bits(b.merged.cpu(), a.merged, f"{backend} {expected.trim}")
        assert a.nonfinite == b.nonfinite, expected.trim
        sums = ops.kept_sums(inputs[0], inputs[1:], expected, backend="reference")
        found = ops.kept_sums(placed[0], placed[1:], own, backend=backend)
        assert_sums(found.kept.cpu(), sums.kept, 1e-12, f"{backend} {expected.trim}")
    return len(chosen)


def check_overflows(backend: str, device: str) -> int:
    """What is rounded to infinity is counted, and nothing beside it, one place before that or after."""
    for wide, to, limit in LIMITS:
        at = torch.tensor([limit], dtype=wide)
        near = [at, at.nextafter(at * 0), at.nextafter(at * torch.inf), at * 0, at * torch.inf, at * torch.nan]
        x = torch.cat([*near, *(-part for part in near)])
        expected = ops.combine(None, [x], dtype=to, backend="reference").merged
        bad = int((~expected.isfinite()).sum())
        assert 4 < bad < len(x)
        for found in (
            ops.combine(None, [x.to(device)], dtype=to, backend=backend),
            ops.blend(None, [x.to(device)], torch.ones(1, 1, device=device), inner=1, dtype=to, backend=backend),
        ):
            assert_same_bits(found.merged.cpu(), expected, f"{backend} {wide} to {to}")
            assert found.nonfinite == bad, f"{backend} {wide} to {to}"
    return len(LIMITS)


def check_low_ranks(backend: str, device: str) -> int:
    """Parts of products, which begin and end in the midst of rows."""
    for (rows, columns, first, n), rank, dtype in product(PRODUCTS, (1, 5), (BF16, F64)):
        base, up, down = make(n, dtype, 1), make(rows * rank, F32, 2), make(rank * columns, F32, 3)
        given = base, up.view(rows, rank), down.view(rank, columns)
        own, expected = (
            ops.low_rank(*(x.to(place) for x in given), 0.37, first=first, backend=name)
            for place, name in ((device, backend), ("cpu", "reference"))
        )
        assert_same_bits(own.cpu(), expected, f"{backend} low_rank {dtype} {rows} × {columns} from {first}")
    return len(PRODUCTS)
