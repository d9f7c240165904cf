"""Every op × dtype × K: bandwidth against a copy of the same bytes, and time against PyTorch's fastest way.

Each round times the copy, PyTorch and the op one after the other in this process, so that a change of the machine's
mood meets all of them; medians of the rounds' ratios are reported.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import peers
import pytest
import torch
from harness import Copy, seconds
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastmerge import dispatch, ops

ELEMENTS = 1 << 25
PEER_ELEMENTS = 1 << 22  # PyTorch works on a part, or it would take an hour; per element it is no slower there
ROUNDS, PEER_ROUNDS = 7, 2
CASES = [(torch.bfloat16, 3), (torch.bfloat16, 8), (torch.float16, 3), (torch.float32, 3)]
OPS = ["elect", "modulate", "mask_against", "combine", "delta_sum", "moments", "inner_products"]
OPS += ["magnitude_histogram", "kth_magnitude", "rank_drop", "extract_topk", "scatter_add"]
OF_ONE_MODEL = ("extract_topk", "scatter_add")
COPY = Copy()


def ours(op: str, base: Tensor, models: list[Tensor]) -> Callable[[], object]:
    """A call of the op that writes into memory it has been given, as the engine's calls do."""
    out = torch.empty_like(base)
    masks = torch.zeros(len(models), ops.packed_bytes(base.numel()), dtype=torch.uint8)
    wide = torch.empty(base.shape, dtype=torch.float32)
    weights = [0.3] * len(models)
    expert = ops.extract_topk(base, models[0], base.numel() // 100 if op == "scatter_add" else 0)
    limits = ((0.6 - 0.2 / 4095 * torch.arange(4096)) * 2**32).long()
    return {
        "elect": lambda: ops.elect(base, models, out=(out, masks)),
        "modulate": lambda: ops.modulate(base, models[0], masks[0], 1.3, out=out),
        "mask_against": lambda: ops.mask_against(base, models, models[0], out=masks),
        "combine": lambda: ops.combine(base, models, weights, out=out),
        "delta_sum": lambda: ops.delta_sum(base, models, weights, out=wide),
        "moments": lambda: ops.moments(base, models),
        "inner_products": lambda: ops.inner_products(base, models),
        "magnitude_histogram": lambda: ops.magnitude_histogram(base, models),
        "kth_magnitude": lambda: ops.kth_magnitude(base, models, [[base.numel() // 5]] * len(models)),
        "rank_drop": lambda: ops.rank_drop(base, models, 4096, range(len(models)), [limits] * len(models), out=masks),
        "extract_topk": lambda: ops.extract_topk(base, models[0], base.numel() // 100),
        "scatter_add": lambda: ops.scatter_add(models[0], expert, 0.5),
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
    share = 0.01 if op == "scatter_add" else 1  # of the tensor's elements that take part
    moved = ops.OPS[op].traffic(int(ELEMENTS * share), k, dtype.itemsize)
    call = ours(op, base, models)
    ways = peers.ways(op) if threads == 1 else {}
    copies: list[float] = []
    others: dict[str, list[float]] = {name: [] for name in ways}
    part = base[:PEER_ELEMENTS], [m[:PEER_ELEMENTS] for m in models]
    for run in ways.values():
        run(*part)  # compiles, and touches memory

    def before_each_round() -> None:
        copies.append(COPY.seconds(moved))
        for name, run in ways.items():
            if len(others[name]) < PEER_ROUNDS:
                others[name].append(seconds(lambda run=run: run(*part)) / PEER_ELEMENTS / share)

    benchmark.pedantic(call, setup=before_each_round, rounds=ROUNDS, warmup_rounds=1)
    times = benchmark.stats.stats.data
    copies = copies[-len(times) :]
    own = statistics.median(times)
    fastest = {name: min(values) for name, values in others.items()}
    benchmark.extra_info.update(
        op=op,
        dtype=str(dtype)[6:],
        k=k,
        threads=threads,
        nanoseconds_per_element=own / ELEMENTS / share * 1e9,
        gigabytes_per_second=moved / own / 1e9,
        copy_gigabytes_per_second=moved / statistics.median(copies) / 1e9,
        of_copy=statistics.median(c / t for c, t in zip(copies, times, strict=True)),
        times_faster={name: value * ELEMENTS * share / own for name, value in fastest.items()},
    )
