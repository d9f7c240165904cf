"""Every op × dtype × K: bandwidth against a copy of the same bytes, and time against PyTorch's fastest way."""

from __future__ import annotations

from functools import partial

import pytest
import pytorch
import torch
from calls import ELEMENTS_FOR_ONE, OF_AN_EXPERT, OF_ONE_MODEL, calls, traffic
from measure import measure
from pytest_benchmark.fixture import BenchmarkFixture

from fastmerge import dispatch

ELEMENTS = 1 << 25
PEER_ELEMENTS = 1 << 22  # PyTorch works on a part, or it would take an hour; per element it is no slower there
CASES = [(torch.bfloat16, 3), (torch.bfloat16, 8), (torch.float16, 3), (torch.float32, 3)]
OPS = ["elect", "modulate", "mask_against", "combine", "blend", "delta_sum", "moments", "inner_products"]
OPS += ["kept_sums", "magnitude_histogram", "kth_magnitude", "rank_drop", "extract_topk", "scatter_add"]
OPS += ["gather", "scatter", "low_rank", "row_gram", "row_divergence", "variance", "compete", "balance"]
# What TIES-Merging, DARE and DARE-TIES make of it.
OPS += ["combine, trim and vote", "combine, drop", "combine, drop and vote"]


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
    share = 1 / ELEMENTS_FOR_ONE if op in OF_AN_EXPERT else 1  # of the tensor's elements that take part
    part = base[:PEER_ELEMENTS], [m[:PEER_ELEMENTS] for m in models]
    measure(
        benchmark,
        calls(base, models)[op],
        elements=int(ELEMENTS * share),
        moved=traffic(op, ELEMENTS, k, dtype.itemsize),
        ways={name: partial(run, *part) for name, run in pytorch.ways(op).items()} if threads == 1 else {},
        ways_elements=int(PEER_ELEMENTS * share),
        op=op,
        dtype=str(dtype)[6:],
        k=k,
        threads=threads,
    )
