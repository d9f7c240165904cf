"""FR-Merging's filter on matrices of real models, against PyTorch's transforms."""

from __future__ import annotations

from functools import partial

import pytest
import pytorch
import torch
from measure import measure
from pytest_benchmark.fixture import BenchmarkFixture

from fastmerge import dispatch, ops

SHAPES = [(5120, 13824), (2048, 5632), (2048, 2048), (768, 3072), (197, 768)]
K = 3


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("op", ["highpass", "highpass_merge"])
def test_filter(benchmark: BenchmarkFixture, op: str, shape: tuple[int, int], dtype: torch.dtype, threads: int) -> None:
    native = dispatch.load("native")
    assert not isinstance(native, str), native
    native.set_threads(threads)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    base = torch.randn(shape).to(dtype)
    models = [(base.float() + 0.01 * torch.randn(shape)).to(dtype) for _ in range(K)]
    out = torch.empty_like(base)
    wide = torch.empty(shape)
    if op == "highpass":
        call = partial(ops.highpass, base, out=wide)
        ways = {"one rfft2": partial(pytorch.highpass, base)}
    else:
        call = partial(ops.highpass_merge, base, models, [0.3] * K, out=out)
        ways = {
            "one rfft2": partial(pytorch.highpass_merge, base, models),
            "fft2 per model": partial(pytorch.highpass_each, base, models),
        }
        torch.testing.assert_close(call().merged, ways["one rfft2"](), rtol=0.01, atol=1e-5)
    measure(
        benchmark,
        call,
        elements=base.numel(),
        moved=ops.OPS[op].traffic(base.numel(), K, dtype.itemsize),
        ways=ways if threads == 1 else {},
        ways_elements=base.numel(),
        op=f"{op} {shape[0]} × {shape[1]}",
        dtype=str(dtype)[6:],
        k=K if op == "highpass_merge" else 1,
        threads=threads,
    )
