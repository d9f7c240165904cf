"""Every op × dtype × K: bandwidth against a copy of the same bytes, and time against PyTorch's fastest way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import peers
import pytest
import torch
from measure import measure
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastmerge import dispatch, ops

ELEMENTS = 1 << 25
PEER_ELEMENTS = 1 << 22  # PyTorch works on a part, or it would take an hour; per element it is no slower there
CASES = [(torch.bfloat16, 3), (torch.bfloat16, 8), (torch.float16, 3), (torch.float32, 3)]
OPS = ["elect", "modulate", "mask_against", "combine", "delta_sum", "moments", "inner_products"]
OPS += ["kept_sums", "magnitude_histogram", "kth_magnitude", "rank_drop", "extract_topk", "scatter_add"]
OPS += ["gather", "scatter", "low_rank"]
OPS += ["combine, trim and vote", "combine, drop"]  # what TIES-Merging and DARE make of it
OF_AN_EXPERT = ("scatter_add", "gather", "scatter")
OF_ONE_MODEL = ("low_rank", "extract_topk", *OF_AN_EXPERT)


def ours(op: str, base: Tensor, models: list[Tensor]) -> Callable[[], object]:
    """A call of the op that writes into memory it has been given, as the engine's calls do."""
    out = torch.empty_like(base)
    masks = torch.zeros(len(models), ops.packed_bytes(base.numel()), dtype=torch.uint8)
    wide = torch.empty(base.shape, dtype=torch.float32)
    weights = [0.3] * len(models)
    expert = ops.extract_topk(base, models[0], base.numel() // 100 if op in OF_AN_EXPERT else 0)
    cut = ops.Cut(0.0128, 0)  # about the largest fifth
    trim = ops.Kept(trim=[ops.Window(bottom=cut) for _ in models])
    drop = ops.Kept(drop=[ops.Drop(k, 1 << 31) for k in range(len(models))])
    thresholds = [torch.linspace(3e9, 1e9, 2048).to(torch.int64)] * len(models)
    up, down = torch.randn(base.numel() // 4096, 16), torch.randn(16, 4096)  # a LoRA of rank 16
    return {
        "low_rank": lambda: ops.low_rank(base, up, down, 0.5, out=out),
        "elect": lambda: ops.elect(base, models, out=(out, masks)),
        "modulate": lambda: ops.modulate(base, models[0], masks[0], 1.3, out=out),
        "mask_against": lambda: ops.mask_against(base, models, models[0], out=masks),
        "combine": lambda: ops.combine(base, models, weights, out=out),
        "delta_sum": lambda: ops.delta_sum(base, models, weights, out=wide),
        "moments": lambda: ops.moments(base, models),
        "inner_products": lambda: ops.inner_products(base, models),
        "magnitude_histogram": lambda: ops.magnitude_histogram(base, models),
        "kth_magnitude": lambda: ops.kth_magnitude(base, models, [[base.numel() // 5]] * len(models)),
        "extract_topk": lambda: ops.extract_topk(base, models[0], base.numel() // 100),
        "kept_sums": lambda: ops.kept_sums(base, models, trim),
        "rank_drop": lambda: ops.rank_drop(base, models, 2048, range(len(models)), thresholds, out=masks),
        "combine, trim and vote": lambda: ops.combine(
            base, models, weights, consensus="weighted", merge="weighted_mean", kept=trim, out=out
        ),
        "combine, drop": lambda: ops.combine(base, models, weights, kept=drop, out=out),
        "scatter_add": lambda: ops.scatter_add(models[0], expert, 0.5),
        "gather": lambda: ops.gather(models[0], expert, out=expert.values),
        "scatter": lambda: ops.scatter(models[0], [expert]),
    }[op]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("dtype", "k"), CASES, ids=[f"{str(d)[6:]}-K{k}" for d, k in CASES])
@pytest.mark.parametrize("op", OPS)
def test_op(benchmark: BenchmarkFixture, op: str, dtype: torch.dtype, k: int, threads: int) -> None:
    native = dispatch.load("native")
    assert not isinstance(native, str), native
    native.set_threads(threads)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    base = torch.randn(ELEMENTS).to(dtype)
    models = [(base.float() + 0.01 * torch.randn(ELEMENTS)).to(dtype) for _ in range(k)]
    if op in OF_ONE_MODEL and k > 3:
        pytest.skip("takes one model")
    share = 0.01 if op in OF_AN_EXPERT else 1  # of the tensor's elements that take part
    part = base[:PEER_ELEMENTS], [m[:PEER_ELEMENTS] for m in models]
    measure(
        benchmark,
        ours(op, base, models),
        elements=int(ELEMENTS * share),
        moved=ops.OPS[op.partition(",")[0]].traffic(
            int(ELEMENTS * share), 1 if op in OF_ONE_MODEL else k, dtype.itemsize
        ),
        ways={name: partial(run, *part) for name, run in peers.ways(op).items()} if threads == 1 else {},
        ways_elements=int(PEER_ELEMENTS * share),
        op=op,
        dtype=str(dtype)[6:],
        k=k,
        threads=threads,
    )
