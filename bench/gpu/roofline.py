"""Every op of the cuda backend × dtype × K: minimum traffic over time against a copy, and times faster than PyTorch.

    python bench/gpu/run.py roofline

Tensors are several times the L2 cache. PyTorch's ways are those of bench/ops/peers.py, eager and compiled.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import peers
import torch
import triton
from calls import arguments, calls, implemented, traffic
from fastmerge.kernels import cuda
from harness import save
from timing import DEVICE, Copy, milliseconds

from fastmerge import ops

FORMS = [(torch.bfloat16, 1), (torch.bfloat16, 3), (torch.bfloat16, 8), (torch.float16, 3), (torch.float32, 3)]
BATCH, MATRIX = 40, 1024 * 1024  # equal matrices of a ViT, in one launch


def elements(dtype: torch.dtype) -> int:
    """How many make a tensor twice the L2 cache at least, and a whole number of rows."""
    cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 50 << 20)
    return int(max(2 * cache, 1 << 27) // dtype.itemsize // 2048 * 2048)


def tensors(n: int, dtype: torch.dtype, count: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(0)
    base = torch.randn(n, device=DEVICE)
    models = [(base + 0.01 * torch.randn_like(base)).to(dtype) for _ in range(count)]
    return base.to(dtype), models


def ways(name: str, compiled: bool) -> dict[str, Callable[..., Any]]:
    """PyTorch's, of those ops that it has any of."""
    if not hasattr(peers, name) and name not in peers.NAMED and name not in peers.OF_WHOLE_TENSORS:
        return {}
    left_out = {"eager, chunked"} if compiled else {"eager, chunked", "torch.compile"}
    return {way: call for way, call in peers.ways(name).items() if way not in left_out}


def rows() -> Iterator[dict[str, Any]]:
    copy = Copy()
    for dtype, k in FORMS:
        n = elements(dtype)
        base, models = tensors(n, dtype, k)
        for name, call in calls(base, models, None).items():
            if not implemented(name, "cuda") or (ops.OPS[name.partition(",")[0]].reach == "tensor" and k > 3):
                continue
            ceiling = copy.gigabytes_per_second()
            took, moved = milliseconds(call), traffic(name, n, k, dtype.itemsize)
            others = ways(name, compiled=(dtype, k) == (torch.bfloat16, 3))
            times = {way: milliseconds(partial(other, base, models), 3, 1) for way, other in others.items()}
            yield row(name, dtype, k, n, took, moved, ceiling, times)
    yield from batches(copy)


def batches(copy: Copy) -> Iterator[dict[str, Any]]:
    """Forty equal matrices in one launch, against a launch each."""
    dtype, k = torch.bfloat16, 3
    pairs = [tensors(MATRIX, dtype, k) for _ in range(BATCH)]
    for op in [name.removesuffix("_many") for name in cuda.__all__ if name.endswith("_many")]:
        jobs = [arguments(op, *pair) for pair in pairs]
        took = milliseconds(partial(getattr(cuda, f"{op}_many"), jobs))
        each = milliseconds(lambda op=op, jobs=jobs: [getattr(cuda, op)(*job) for job in jobs])  # type: ignore[misc]
        moved = BATCH * traffic(op, MATRIX, k, dtype.itemsize)
        name = f"{op}, {BATCH} × 2^20 elements"
        yield row(name, dtype, k, BATCH * MATRIX, took, moved, copy.gigabytes_per_second(), {"one by one": each})


def row(
    name: str, dtype: torch.dtype, k: int, n: int, took: float, moved: int, ceiling: float, others: dict[str, float]
) -> dict[str, Any]:
    bandwidth = moved / took / 1e6
    return {
        "op": name,
        "dtype": str(dtype).removeprefix("torch."),
        "k": k,
        "elements": n,
        "milliseconds": took,
        "gigabytes_per_second": bandwidth,
        "copy_gigabytes_per_second": ceiling,
        "of_copy": bandwidth / ceiling,
        "times_faster": {way: other / took for way, other in others.items()},
    }


def show(found: dict[str, Any]) -> None:
    faster = ", ".join(f"{value:.1f} × {way}" for way, value in found["times_faster"].items())
    print(
        f"{found['op']:30s} {found['dtype']:9s} K={found['k']}  {found['milliseconds']:8.3f} ms  "
        f"{found['gigabytes_per_second']:7.0f} GB/s  {found['of_copy']:5.2f} of copy  {faster}",
        flush=True,
    )


def machine() -> dict[str, str]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory >> 30} GiB",
        "driver": _driver(),
        "cuda": str(torch.version.cuda),
        "triton": triton.__version__,
    }


def _driver() -> str:
    version = Path("/proc/driver/nvidia/version")
    return version.read_text().splitlines()[0] if version.exists() else "unknown"


def main() -> None:
    found, begin = [], time.perf_counter()
    for measured in rows():
        found.append(measured)
        show(measured)
    print(f"{len(found)} rows in {time.perf_counter() - begin:.0f} s")
    if "--no-save" not in sys.argv:
        print(f"kept in {save('gpu', found, **machine())}")


if __name__ == "__main__":
    main()
