"""Each op once, of few elements and in every form that differs in memory accesses: what compute-sanitizer watches.

    python bench/gpu/small.py [PART OF]

With the paths that bench/gpu/run.py sets. PART OF: of so many parts, which run side by side, one, counted from 0.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import torch
from calls import arguments, calls, implemented
from fastmerge.kernels import cuda
from fastmerge.kernels.cuda import brackets
from kept import kept
from magnitudes import assert_same_drops, pair
from timing import DEVICE
from torch import Tensor

from fastmerge import ops

SIZE = 65_536 + 1027  # two blocks, the last tile not whole
SHAPES = (25, 40), (25, 40), (3, 21), (259, 257)  # the last of them of two blocks too
LEAST = 1 << 10  # elements of a tensor that is sampled
# Dtypes, how many models, and how many elements past an aligned address.
FORMS = (torch.bfloat16, 3, 0), (torch.bfloat16, 9, 0), (torch.float32, 3, 0), (torch.float64, 5, 0)
FORMS += ((torch.bfloat16, 3, 1),)
# Rows that are ranked, and their columns: of so different thresholds that more wait for their ranks than there is room
# for; the last are sorted by torch.
ROWS = (9, 7), (3, 3001), (5, 14_336), (1, 70_001)
RANKED = (torch.bfloat16, torch.bfloat16), (torch.float64, torch.bfloat16)  # base and model
# Rows and columns of a product, and the first of its elements that is wanted: whole tiles and parts.
PRODUCTS = (20, 1024, 0), (9, 1040, 16), (13, 1000, 700)


def others(base: Tensor, models: Sequence[Tensor]) -> None:
    """What the calls that benchmarks time leave out."""
    n, k = base.numel(), len(models)
    masked, all_at_once = (kept(base, models, ops.BLOCK, parts) for parts in (("keep",), ("trim", "drop", "keep")))
    ops.combine(base, models, consensus="max", kept=masked, offset=ops.BLOCK)
    ops.combine(base, models, consensus="count", merge="mean", kept=all_at_once, offset=ops.BLOCK)
    ops.kept_sums(base, models, all_at_once, offset=ops.BLOCK)
    for inner, groups in ((1000, -(-n // 1000)), (7, 100), (1, 4096)):
        ops.blend(base, models, torch.rand(k, groups, device=DEVICE), inner=inner)
    ops.mask_against(base, models, models[0], tall=[0.4] * k)
    ops.magnitude_histogram(base, models, wide=True)
    for columns in (n, 7):  # one row in parts, and short ones
        wanted = slice(0, n // columns * columns)
        ops.row_gram(base[wanted], [model[wanted] for model in models], columns)
        ops.row_divergence(base[wanted], models[0][wanted], columns)
    for rows, columns, first in PRODUCTS:
        part = torch.randn(rows * columns, device=DEVICE).to(base.dtype)[first:]
        up, down = torch.randn(rows, 5, device=DEVICE), torch.randn(5, columns, device=DEVICE)
        ops.low_rank(part, up, down, 0.5, first=first)


def together(base: Tensor, models: Sequence[Tensor]) -> None:
    """Many tensors at once, and those that are made ready together."""
    parts = [(shape, slice(0, shape[0] * shape[1])) for shape in SHAPES]
    jobs = {
        op: [arguments(op, base[part], [model[part] for model in models], shape) for shape, part in parts]
        for op in [name.removesuffix("_many") for name in cuda.__all__ if name.endswith("_many")]
    }
    for op, own in jobs.items():
        getattr(cuda, f"{op}_many")(own)
    ops.modulation(jobs["modulate"])()
    thetas = [models[0][part] for _, part in parts]
    experts = [ops.extract_topk(base[: theta.numel()], theta, theta.numel() // 9) for theta in thetas]
    ops.scattering([(theta, [expert, expert]) for theta, expert in zip(thetas, experts, strict=True)])()


def every_op(dtype: torch.dtype, k: int, first: int) -> None:
    base, *models = (torch.randn(SIZE + first, device=DEVICE).to(dtype)[first:] for _ in range(k + 1))
    for name, call in calls(base, models, None).items():
        if implemented(name, "cuda"):
            call()
    others(base, models)
    together(base, models)


def ranked(dtypes: tuple[torch.dtype, torch.dtype], rows: int, columns: int) -> None:
    base, model = pair(dtypes, rows * columns, shift=rows % 2)
    assert_same_drops(base, model, columns, ("far", "unordered"), DEVICE)


def main(part: int = 0, of: int = 1) -> None:
    brackets.LEAST = LEAST
    jobs: list[Callable[[], None]] = [partial(every_op, *form) for form in FORMS]
    jobs += [partial(ranked, dtypes, *size) for dtypes, size in product(RANKED, ROWS)]
    for job in jobs[part::of]:
        job()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
    torch.cuda.synchronize()
    print("every op has run")
