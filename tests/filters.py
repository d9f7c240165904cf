"""Compares the cuda backend's highpass and highpass_merge with the reference, on a GPU or with what stands for one."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from typing import Any

import torch
from fake_cufft import Cufft, in_place_of_cufft
from fastmerge.kernels import cuda, reference
from fastmerge.kernels.cuda import cufft
from tensors import BF16, F16, F32, F64, assert_same_bits, make, poisoned
from torch import Tensor

from fastmerge.cutoff import Cutoff

GROUPS = ("shapes", "dtypes", "nonfinite", "filter", "together")
TOLERANCE = {F32: 1e-6, F64: 1e-13}
HALF = {BF16: 2.0**-8, F16: 2.0**-11, F32: 2.0**-24, F64: 2.0**-53}
FILTERS: list[dict[str, Any]] = [
    {"cutoff": 0.3},
    {"cutoff": 0.0},
    {"cutoff": 1.3},
    {"cutoff": 9.0},
    {"convention": "released", "ratio": 0.35},
    {"convention": "released", "ratio": 0.02},
]
# Elements of a block, and of a plan of several matrices: many blocks a matrix; many matrices a plan, and a few; one a
# plan, of which several go side by side where they are of even size.
BLOCKS = ((128, 128), (5000, 5000), (5000, 800), (800, 800), (5000, 300))
SHAPES = [
    (1, 1, 1),
    (1, 1, 30),
    (3, 30, 1),
    (2, 17, 16),
    (1, 64, 25),
    (5, 9, 40),
    (1, 1, 2),
    (2, 3, 2),
    (1, 5, 330),
    (1, 3, 231),
]


def noise(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    n = int(torch.Size(shape).numel())
    return (make(n, F64, seed, special=False) + 0.75).to(dtype).view(shape)


def limits(options: dict[str, Any], shape: tuple[int, ...]) -> tuple[str, int]:
    cutoff = Cutoff(**options)
    return cutoff.convention, cutoff.limit(*shape[1:])


def check(
    shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], k: int, options: dict[str, Any], device: str,
    scale: float = 1.0, as_delta: bool = False, out: torch.dtype | None = None,
) -> None:  # fmt: skip
    base, *models = (noise(shape, dtypes[i % len(dtypes)], i) for i in range(k + 1))
    weights = [0.4 - 0.15 * i for i in range(k)]
    given = (base.double(), [m.double() for m in models], weights, *limits(options, shape), scale, as_delta)
    exact, v = torch.empty(shape, dtype=F64), torch.empty(shape, dtype=F64)
    reference.highpass_merge(*given, exact)
    reference.delta_sum(given[0].view(-1), [m.view(-1) for m in given[1]], weights, v.view(-1))
    out = out or base.dtype
    result = poisoned(shape, out).to(device)
    moved = (base.to(device), [m.to(device) for m in models], *given[2:])
    assert cuda.highpass_merge(*moved, result)() == 0
    working = F64 if F64 in (base.dtype, *(m.dtype for m in models)) else F32
    allowed = 2 * TOLERANCE[working] * (1 + v.abs().max() + given[0].abs().max()) + HALF[out] * exact.abs()
    error = (result.cpu().double() - exact).abs()
    assert (error <= allowed).all(), f"{shape} {dtypes} {options}: {error.max():.2e}"
    check_pieces(moved, result)


def check_pieces(given: tuple[Any, ...], whole: Tensor) -> None:
    """Again, in pieces, the last one first, and the last matrix alone: the same bits."""
    again = torch.full_like(whole, torch.nan)
    cuda.highpass_merge(*given, again)
    assert_same_bits(again.cpu(), whole.cpu(), "again")
    filtered, n = cuda.Filtered(*given[:5]), whole.numel()
    again = torch.full_like(whole, torch.nan)
    for a, b in ((n // 2, n), (0, n // 3), (n // 3, n // 3 + 1), (n // 3 + 1, n // 2)):
        filtered.write(a, *given[5:], again.view(-1)[a:b])
    assert_same_bits(again.cpu(), whole.cpu(), "pieces")
    own = torch.full_like(whole[-1:], torch.nan)
    cuda.highpass_merge(given[0][-1:], [m[-1:] for m in given[1]], *given[2:], own)
    assert_same_bits(own.cpu(), whole[-1:].cpu(), "one matrix")


def check_nonfinite(options: dict[str, Any], bad: float, device: str) -> None:
    """What is not finite in one element of one input is met, whatever is kept."""
    for where in (0, 1, 2):
        inputs = [noise((2, 6, 10), F32, i) for i in range(3)]
        inputs[where][1, 3, 4] = bad
        base, *models = (x.to(device) for x in inputs)
        out = torch.empty_like(base)
        assert cuda.highpass_merge(base, models, [0.5, 0.5], *limits(options, (2, 6, 10)), 1.0, False, out)() > 0


# Of tensors that are merged at once: a shape, dtypes, models, a filter, a scale, whether without base.
TENSORS: list[tuple[tuple[int, int, int], tuple[torch.dtype, ...], int, dict[str, Any], float, bool]] = [
    ((1, 9, 40), (F32,), 2, FILTERS[0], 1.0, False),
    ((1, 9, 40), (BF16,), 3, FILTERS[0], 0.7, False),
    ((3, 9, 40), (BF16,), 3, FILTERS[0], 1.0, True),
    ((0, 9, 40), (BF16,), 3, FILTERS[0], 1.0, False),
    ((1, 9, 40), (F64,), 2, FILTERS[0], 1.0, False),
    ((1, 9, 40), (BF16,), 3, FILTERS[4], 1.0, False),
    ((1, 13, 21), (BF16, F32), 9, FILTERS[0], 1.0, False),
    ((2, 13, 21), (F16,), 2, FILTERS[0], 0.5, False),
    ((1, 9, 40), (BF16,), 3, FILTERS[0], 1.0, False),
]


def check_together(device: str) -> int:
    """Tensors at once have the bits, and the counts of what is not finite, that each has alone; by the same plans."""
    fake = Cufft()
    with in_place_of_cufft(fake) if device == "cpu" else nullcontext():
        for i in range(0, 2 * len(BLOCKS), 2):
            take_turns(i)
            jobs: list[Any] = []
            for number, (shape, dtypes, k, options, scale, as_delta) in enumerate(TENSORS):
                base, *models = (noise(shape, dtypes[j % len(dtypes)], 9 * number + j).to(device) for j in range(k + 1))
                if number == 2:
                    models[1][1, 2, 3] = torch.nan
                weights = [0.4 - 0.1 * j for j in range(k)]
                jobs.append((base, models, weights, *limits(options, shape), scale, as_delta, torch.empty_like(base)))
            counts, plans = cuda.highpass_merge_many(jobs)(), len(fake.made)
            assert [count > 0 for count in counts] == [number == 2 for number in range(len(jobs))]
            for job, count in zip(jobs, counts, strict=True):
                own = poisoned(job[-1].shape, job[-1].dtype).to(device)
                assert cuda.highpass_merge(*job[:-1], own)() == count
                assert_same_bits(own.cpu(), job[-1].cpu(), f"{job[-1].shape} {job[-1].dtype}")
            assert len(fake.made) == plans
        check_failures(device)
    return len(TENSORS)


def check_failures(device: str) -> None:
    """After a piece has failed, whichever sum or transform it was at, all pieces can be had."""
    transform, add, shape = cufft.rows, module().delta_sum_many, (2, 9, 40)
    base, model = (noise(shape, F32, i).to(device) for i in range(2))
    given, half = (base, [model], [1.0], *limits(FILTERS[2], shape)), base.numel() // 2
    whole, left = torch.empty_like(base), [0]
    cuda.highpass_merge(*given, 1.0, False, whole)

    def counted() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise torch.OutOfMemoryError("simulated")

    def transforming(*arguments: Any) -> None:
        counted()
        transform(*arguments)

    def adding(jobs: Any) -> None:
        for *_, out in jobs:
            out.fill_(torch.nan)
        counted()
        add(jobs)

    for block, at in itertools.product((360, 120), range(1, 24)):
        module().BLOCK = module().PLANNED = block
        filtered, out = cuda.Filtered(*given), torch.full_like(whole.view(-1), torch.nan)
        filtered.write(0, 1.0, False, out[:half])
        left[0], cufft.rows, module().delta_sum_many = at, transforming, adding
        try:
            with suppress(torch.OutOfMemoryError):
                filtered.write(half, 1.0, False, out[half:])
        finally:
            cufft.rows, module().delta_sum_many = transform, add
        for piece in (slice(half, None), slice(0, half))[:: 1 if at % 2 else -1]:
            filtered.write(piece.start, 1.0, False, out[piece])
        assert_same_bits(out.view(shape).cpu(), whole.cpu(), f"after step {at} of blocks of {block}")


def cases(group: str) -> Iterator[dict[str, Any]]:
    if group == "shapes":
        for shape, options in itertools.product(SHAPES, FILTERS):
            yield {"shape": shape, "dtypes": (F32,), "k": 2, "options": options}
    if group == "dtypes":
        for dtypes in [(BF16,), (F16,), (F64,), (BF16, F32), (F32, BF16, F16), (BF16, F64)]:
            for k in (2, 9):
                yield {"shape": (2, 11, 20), "dtypes": dtypes, "k": k, "options": FILTERS[0]}
            yield {"shape": (2, 11, 20), "dtypes": dtypes, "k": 2, "options": FILTERS[0], "scale": 0.7, "out": F32}
            yield {"shape": (2, 11, 20), "dtypes": dtypes, "k": 2, "options": FILTERS[1], "as_delta": True, "out": BF16}


def check_filter(device: str) -> int:
    for i, (shape, options) in enumerate(itertools.product(SHAPES, FILTERS)):
        dtype = (BF16, F64)[i % 2]
        x, exact = noise(shape, dtype, 3), torch.empty(shape, dtype=F64)
        reference.highpass(x.double(), *limits(options, shape), exact)
        out = poisoned(shape, F64 if dtype == F64 else F32).to(device)
        take_turns(i)
        cuda.highpass(x.to(device), *limits(options, shape), out)
        assert (out.cpu().double() - exact).abs().max() <= TOLERANCE[out.dtype] * x.double().abs().max()
    return len(SHAPES) * len(FILTERS)


def take_turns(i: int) -> None:
    """Work on blocks, and by plans, of another size."""
    module().BLOCK, module().PLANNED = BLOCKS[i // 2 % len(BLOCKS)]


def module() -> Any:
    """The package's attribute is the op."""
    return sys.modules["fastmerge.kernels.cuda.highpass_merge"]


def check_group(group: str, device: str) -> int:
    """The number of cases that are right. device: "cpu" where kernels are interpreted, or executed, there."""
    if group == "filter":
        with in_place_of_cufft(Cufft()) if device == "cpu" else nullcontext():
            return check_filter(device)
    if group == "together":
        return check_together(device)
    if group == "nonfinite":
        for i, (options, bad) in enumerate(itertools.product(FILTERS, (torch.nan, torch.inf))):
            take_turns(i)
            check_nonfinite(options, bad, device)
        return 6 * len(FILTERS)
    found = list(cases(group))
    for i, case in enumerate(found):
        take_turns(i)
        check(device=device, **case)
    return len(found)
