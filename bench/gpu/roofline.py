"""Every op of the cuda backend × dtype × K: minimum traffic over time against a copy, and times faster than PyTorch.

    python bench/gpu/run.py roofline

Tensors are many times the L2 cache. PyTorch's ways are those of bench/ops/pytorch.py, eager and compiled, which need so
much memory that they get the first part of the same tensors; times faster are by element.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytorch
import torch
from calls import arguments, calls, implemented, traffic
from fastmerge.kernels import cuda
from harness import save
from plot import plot
from timing import DEVICE, Copy, machine, milliseconds

from fastmerge import ops

FORMS = [(torch.bfloat16, 3), (torch.bfloat16, 1), (torch.bfloat16, 8), (torch.float16, 3), (torch.float32, 3)]
MAIN = FORMS[0]  # of which tensors are largest, and PyTorch is compiled too
PEERS, PEERS_WHOLE = 1 << 27, 1 << 25  # elements for PyTorch's ways, and for those that sort or search
COMPILED = {"elect", "modulate", "mask_against", "combine", "combine, trim and vote", "combine, drop", "moments"}
COMPILED |= {"inner_products", "kept_sums"}  # each takes seconds to compile
VIT = [  # CLIP's ViT-B/32
    (768,), (768, 3, 32, 32), (50, 768), *[(768,)] * 4, (512, 768),
    *[(768, 768), (768,)] * 4 * 12, *[(3072, 768), (3072,), (768, 3072), (768,)] * 12, *[(768,)] * 4 * 12,
]  # fmt: skip
BATCHES = {"ViT-B/32": VIT, "40 × 5120 × 5120": [(5120, 5120)] * 40}


def elements(dtype: torch.dtype, k: int = 3) -> int:
    """A whole number of rows of 2048, many times any L2 cache: 2^30 in the main form."""
    return 1 << 30 if (dtype, k) == MAIN else (1 << 29) // dtype.itemsize // max(1, k // 4)


def tensors(n: int, dtype: torch.dtype, count: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(0)
    base = torch.randn(n, device=DEVICE)
    models = [(base + 0.01 * torch.randn_like(base)).to(dtype) for _ in range(count)]
    return base.to(dtype), models


def ways(name: str, compiled: bool) -> dict[str, Callable[..., Any]]:
    """PyTorch's, of those ops that it has any of."""
    if not hasattr(pytorch, name) and name not in pytorch.NAMED and name not in pytorch.OF_WHOLE_TENSORS:
        return {}
    left_out = {"eager, chunked"} if compiled and name in COMPILED else {"eager, chunked", "torch.compile"}
    return {way: call for way, call in pytorch.ways(name).items() if way not in left_out}


def rows() -> Iterator[dict[str, Any]]:
    copy = Copy()
    for dtype, k in FORMS:
        n = elements(dtype, k)
        base, models = tensors(n, dtype, k)
        for name, call in calls(base, models, None).items():
            if not implemented(name, "cuda") or (ops.OPS[name.partition(",")[0]].reach == "tensor" and k > 3):
                continue
            ceiling = copy.gigabytes_per_second()
            took, moved = milliseconds(call), traffic(name, n, k, dtype.itemsize)
            whole = name in pytorch.OF_WHOLE_TENSORS
            m = min(n, PEERS_WHOLE if whole else PEERS)
            part, parts = base[:m], [model[:m] for model in models]
            times = {
                way: milliseconds(partial(other, part, parts), 3, 1) * n / m
                for way, other in (ways(name, (dtype, k) == MAIN) if k == 3 else {}).items()
            }
            yield row(name, dtype, k, n, took, moved, ceiling, times)
    yield from batches(copy)


def batches(copy: Copy) -> Iterator[dict[str, Any]]:
    """All tensors of a model in one launch, against a launch each."""
    dtype, k = torch.bfloat16, 3
    for title, shapes in BATCHES.items():
        sizes = [torch.Size(shape).numel() for shape in shapes]
        pairs = [tensors(n, dtype, k) for n in sizes]
        for op in [name.removesuffix("_many") for name in cuda.__all__ if name.endswith("_many")]:
            # FR's filter is of matrices.
            own = [i for i, shape in enumerate(shapes) if op != "highpass_merge" or len(shape) == 2]
            jobs = [arguments(op, *pairs[i], shapes[i]) for i in own]
            took = milliseconds(partial(getattr(cuda, f"{op}_many"), jobs))
            each = milliseconds(lambda op=op, jobs=jobs: [getattr(cuda, op)(*job) for job in jobs])  # type: ignore[misc]
            moved = sum(traffic(op, sizes[i], k, dtype.itemsize) for i in own)
            times = {"one by one": each}
            yield row(
                f"{op}, {title}", dtype, k, sum(sizes[i] for i in own), took, moved, copy.gigabytes_per_second(), times
            )


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


def main() -> None:
    found, begin = [], time.perf_counter()
    try:
        for measured in rows():
            found.append(measured)
            show(measured)
    finally:  # what has been measured counts
        print(f"{len(found)} rows in {time.perf_counter() - begin:.0f} s")
        if found:
            file = save("gpu-roofline", found, **machine())
            print(f"kept in {file} and {plot(file).name}", flush=True)


if __name__ == "__main__":
    main()
