"""FR-Merging's filter and merge of matrices of real models, against moving its bytes, and against PyTorch's transforms.

    python bench/gpu/filter.py

With the paths that bench/gpu/run.py sets. K = 3 models in bfloat16 would move 21 bytes an element if no whole spectrum
were ever stored: two sweeps that read base and models, one that writes, and few columns. cuFFT's transforms store it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytorch
import torch
from harness import save
from roofline import machine, tensors
from timing import Copy, milliseconds

from fastmerge import ops

SHAPES = [(5120, 13824), (4096, 11008), (2048, 5632), (768, 3072)]
DTYPES = [torch.bfloat16, torch.float32]
K, CUTOFF = 3, 0.3
LEAST = 21  # bytes an element


def rows() -> Iterator[dict[str, Any]]:
    copy = Copy()
    for shape in SHAPES:
        for dtype in DTYPES:
            base, models = tensors(shape[0] * shape[1], dtype, K)
            yield row(base.view(shape), [model.view(shape) for model in models], copy.gigabytes_per_second())


def row(base: torch.Tensor, models: list[torch.Tensor], ceiling: float) -> dict[str, Any]:
    check(base, models)
    wide = base.float()
    took = milliseconds(partial(ops.highpass_merge, base, models, [0.3] * K, cutoff=CUTOFF, out=torch.empty_like(base)))
    others = {
        "rfft2 and irfft2 alone": lambda: torch.fft.irfft2(torch.fft.rfft2(wide), s=wide.shape),
        "one rfft2": partial(pytorch.highpass_merge, base, models, CUTOFF),
        "fft2 per model": partial(pytorch.highpass_each, base, models, CUTOFF),
    }
    times = {way: milliseconds(other, 5, 1) for way, other in others.items()}
    return {
        "op": "highpass_merge",
        "shape": list(base.shape),
        "dtype": str(base.dtype).removeprefix("torch."),
        "k": K,
        "cutoff": CUTOFF,
        "milliseconds": took,
        "copy_gigabytes_per_second": ceiling,
        "of_21_bytes": took / (LEAST * base.numel() / ceiling / 1e6),
        "times_faster": {way: other / took for way, other in times.items()},
    }


def check(base: torch.Tensor, models: list[torch.Tensor]) -> None:
    """What is merged is near PyTorch's; SystemExit otherwise."""
    (v,) = pytorch.delta_sum(base, models)
    given = partial(ops.highpass_merge, base, models, [0.3] * K, cutoff=CUTOFF)
    delta = given(as_delta=True, dtype=torch.float32).merged
    error = (delta - pytorch.highpass(v, CUTOFF)).abs().max() / v.abs().max()
    if not error <= 4e-6:
        raise SystemExit(f"{list(base.shape)} {base.dtype}: {error:.1e} of the largest from PyTorch's")
    torch.testing.assert_close(given().merged, pytorch.highpass_merge(base, models, CUTOFF), rtol=0.01, atol=1e-5)


def show(found: dict[str, Any]) -> None:
    faster = ", ".join(f"{value:.1f} × {way}" for way, value in found["times_faster"].items())
    print(
        f"{'{} × {}'.format(*found['shape']):14s} {found['dtype']:9s} {found['milliseconds']:8.3f} ms  "
        f"{found['of_21_bytes']:5.2f} × {LEAST} bytes at {found['copy_gigabytes_per_second']:.0f} GB/s  {faster}",
        flush=True,
    )


def main() -> None:
    found = []
    for measured in rows():
        found.append(measured)
        show(measured)
    print(f"kept in {save('gpu-filter', found, **machine())}")


if __name__ == "__main__":
    main()
