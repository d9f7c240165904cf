"""A call of every op, as the engine makes it: what benchmarks time on any backend, and ahead-of-time tests compile."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmerge import dispatch, ops
from fastmerge.cutoff import Cutoff

OF_AN_EXPERT = ("scatter_add", "gather", "scatter")
OF_ONE_MODEL = ("low_rank", "extract_topk", "row_divergence", *OF_AN_EXPERT)
# By which an entry of the cuda backend's launch settings is measured: a dtype of so many bytes, and the call that
# stands for those that have no entry of their own.
OF_BYTES = {1: torch.bfloat16, 2: torch.bfloat16, 4: torch.float32, 8: torch.float64}
STANDS_FOR = {"*": "modulate"}
ELEMENTS_FOR_ONE = 100  # of a tensor, for one of its expert's
BOUNDS = ops.Bounds(0.0, 0.05, 0.001, 0.02)
CUT = ops.Cut(0.0128, 0)  # about the largest fifth of task vectors near 0.01


def calls(base: Tensor, models: list[Tensor], backend: str | None = None) -> dict[str, Callable[[], Any]]:
    """By name, of which the part before a comma is the op's. They write into memory that they have been given."""
    n, k, device = base.numel(), len(models), base.device
    how: Any = {"backend": backend}
    out, wide = torch.empty_like(base), torch.empty(n, dtype=ops.working_dtype([base, *models]), device=device)
    masks = torch.zeros(k, ops.packed_bytes(n), dtype=torch.uint8, device=device)
    flags = torch.zeros(n, dtype=torch.bool, device=device)
    weights = [0.3] * k
    trim = ops.Kept(trim=[ops.Window(bottom=CUT) for _ in models])
    drop = ops.Kept(drop=[ops.Drop(i, 1 << 31) for i in range(k)])
    columns = next(c for c in (2048, 1) if n % c == 0)
    # DELLA's of density 0.5 and ε 0.1: of small magnitudes 0.55 are dropped, of large ones 0.45.
    thresholds = [(torch.linspace(0.55, 0.45, columns, dtype=torch.float64) * 2**32).long().to(device)] * k
    table = torch.full((k, n // columns), 0.3, device=device)
    up, down = (torch.randn(shape, device=device) for shape in [(n // columns, 16), (16, columns)])  # a LoRA of rank 16
    expert = functools.cache(lambda: ops.extract_topk(base, models[0], n // ELEMENTS_FOR_ONE))
    return {
        "elect": lambda: ops.elect(base, models, out=(out, masks), **how),
        "modulate": lambda: ops.modulate(base, models[0], masks[0], 1.3, out=out, **how),
        "mask_against": lambda: ops.mask_against(base, models, models[0], out=masks, **how),
        "combine": lambda: ops.combine(base, models, weights, out=out, **how),
        "combine, trim and vote": lambda: ops.combine(
            base, models, weights, consensus="weighted", merge="weighted_mean", kept=trim, out=out, **how
        ),
        "blend": lambda: ops.blend(base, models, table, inner=columns, out=out, **how),
        "low_rank": lambda: ops.low_rank(base, up, down, 0.5, out=out, **how),
        "combine, drop": lambda: ops.combine(base, models, weights, kept=drop, out=out, **how),
        "combine, drop and vote": lambda: ops.combine(
            base, models, weights, consensus="weighted", merge="weighted_mean", kept=drop, out=out, **how
        ),
        "delta_sum": lambda: ops.delta_sum(base, models, weights, out=wide, **how),
        "moments": lambda: ops.moments(base, models, **how),
        "inner_products": lambda: ops.inner_products(base, models, **how),
        "gram": lambda: ops.gram(base, models, **how),
        "row_gram": lambda: ops.row_gram(base, models, columns, **how),
        "row_divergence": lambda: ops.row_divergence(base, models[0], columns, **how),
        "variance": lambda: ops.variance(base, models, out=wide, **how),
        "compete": lambda: ops.compete(base, models, 0, least=0.0, most=0.05, out=wide, **how),
        "balance": lambda: ops.balance(base, models, [BOUNDS] * k, out=out, **how),
        "kept_sums": lambda: ops.kept_sums(base, models, trim, **how),
        "magnitude_histogram": lambda: ops.magnitude_histogram(base, models, **how),
        "kth_magnitude": lambda: ops.kth_magnitude(base, models, [[n // 5]] * k, **how),
        "rank_drop": lambda: ops.rank_drop(base, models, columns, range(k), thresholds, out=masks, **how),
        "extract_topk": lambda: ops.extract_topk(base, models[0], n // ELEMENTS_FOR_ONE, **how),
        "scatter_add": lambda: ops.scatter_add(models[0], expert(), 0.5, **how),
        "gather": lambda: ops.gather(models[0], expert(), out=expert().values, **how),
        "scatter": lambda: ops.scatter(models[0], [expert()], **how),
        "pack_bits": lambda: ops.pack_bits(flags, out=masks[0], **how),
        "unpack_bits": lambda: ops.unpack_bits(masks[0], (n,), out=flags, **how),
    }


def implemented(name: str, backend: str) -> bool:
    """Whether the backend is there and has the op of a call."""
    return hasattr(dispatch.load(backend), name.partition(",")[0])


def traffic(name: str, n: int, k: int, itemsize: int) -> int:
    """The least bytes that a call must move."""
    op = ops.OPS[name.partition(",")[0]]
    return op.traffic(
        n // ELEMENTS_FOR_ONE if op.name in OF_AN_EXPERT else n, 1 if op.name in OF_ONE_MODEL else k, itemsize
    )


def arguments(op: str, base: Tensor, models: list[Tensor], shape: tuple[int, ...]) -> tuple[Any, ...]:
    """What a backend's function takes, for those ops that have a form for many tensors; base and models are 1-D."""
    n, k = base.numel(), len(models)
    sums = torch.zeros(4 * k, dtype=torch.float64, device=base.device)
    masks = torch.zeros(k, ops.packed_bytes(n), dtype=torch.uint8, device=base.device)
    out, weights = torch.empty_like(base), [0.3] * k
    if op == "elect":
        return base, models, out, masks, sums[: 2 * k].view(2, k)
    if op == "modulate":
        return base, models[0], masks[0], 1.3, out
    if op == "moments":
        return base, models, sums.view(4, k), torch.zeros(k, dtype=torch.int64, device=base.device)
    if op == "delta_sum":
        return base, models, weights, torch.empty_like(base, dtype=ops.working_dtype([base, *models]))
    if op == "highpass_merge":
        limits, matrix = Cutoff(0.3), (1, *shape)
        given = base.view(matrix), [model.view(matrix) for model in models], weights, limits.convention
        return *given, limits.limit(*shape), 1.0, False, out.view(matrix)
    assert op == "combine", f"{op} has no form for many tensors"
    return base, models, weights, 1.0, 1.0, "sum", False, (None, None, None), 0, out
