"""FR-Merging's filter and merge of matrices of real models, against moving its bytes, and against others' transforms.

    python bench/gpu/filter.py

With the paths that bench/gpu/run.py sets. K = 3 models in bfloat16 would move 21 bytes an element if no whole spectrum
were ever stored: two sweeps that read base and models, one that writes, and few columns. cuFFT's transforms store it.

What a filter by cuFFT would at least take is its two transforms of the matrix in float32, without what comes before,
between and after. PyTorch's take longer: irfft2 copies its input, which cuFFT destroys, and both allocate.
"""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import byref, c_int, c_longlong, c_size_t
from functools import partial
from typing import Any

import pytorch
import torch
from fastmerge.kernels.cuda import cufft
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


class Transforms:
    """cuFFT's two-dimensional transforms of a float32 matrix, forth and back: plans and memory are made once."""

    def __init__(self, x: torch.Tensor) -> None:
        h, w = x.shape
        self.given, self.back = x, torch.empty_like(x)  # times h · w
        self.spectrum = torch.empty(h, w // 2 + 1, dtype=torch.complex64, device=x.device)
        real, half = (h, w), (h, w // 2 + 1)
        plans = [self._plan("R2C", real, real, half), self._plan("C2R", real, half, real)]
        self.plans = [plan for plan, _ in plans]
        self.workspace = torch.empty(max(size for _, size in plans), dtype=torch.uint8, device=x.device)
        stream = torch.cuda.current_stream(x.device).cuda_stream
        for plan in self.plans:
            cufft._check(cufft.library().cufftSetStream(plan, stream), "taking torch's stream")
            cufft._check(cufft.library().cufftSetWorkArea(plan, self.workspace.data_ptr()), "taking a workspace")

    @staticmethod
    def _plan(kind: str, *sizes: tuple[int, int]) -> tuple[int, int]:
        """A plan, and the bytes of its workspace. sizes: of the transform, of what it reads and of what it writes."""
        library, plan, workspace = cufft.library(), c_int(), c_size_t()
        n, source, target = ((c_longlong * 2)(*size) for size in sizes)
        apart = [size[0] * size[1] for size in sizes]
        cufft._check(library.cufftCreate(byref(plan)), "beginning a plan")
        cufft._check(library.cufftSetAutoAllocation(plan.value, 0), "beginning a plan")
        cufft._check(
            library.cufftMakePlanMany64(
                plan.value, 2, n, source, 1, apart[1], target, 1, apart[2], cufft.TYPES[kind], 1, byref(workspace)
            ),
            f"planning {kind} of {sizes[0]}",
        )
        return plan.value, workspace.value

    def __call__(self) -> None:
        library, (forth, back), spectrum = cufft.library(), self.plans, self.spectrum.data_ptr()
        cufft._check(library.cufftExecR2C(forth, self.given.data_ptr(), spectrum), "R2C")
        cufft._check(library.cufftExecC2R(back, spectrum, self.back.data_ptr()), "C2R")

    def close(self) -> None:
        for plan in self.plans:
            cufft._check(cufft.library().cufftDestroy(plan), "ending a plan")


def alone(x: torch.Tensor) -> float:
    """The milliseconds of cuFFT's transforms; SystemExit where they do not give the matrix back."""
    transforms = Transforms(x)
    transforms()
    error = (transforms.back / x.numel() - x).abs().max() / x.abs().max()
    if not error <= 4e-6:
        raise SystemExit(f"{list(x.shape)}: cuFFT's R2C and C2R are {error:.1e} of the largest from what was given")
    took = milliseconds(transforms)
    transforms.close()
    return took


def row(base: torch.Tensor, models: list[torch.Tensor], ceiling: float) -> dict[str, Any]:
    check(base, models)
    wide = base.float()
    took = milliseconds(partial(ops.highpass_merge, base, models, [0.3] * K, cutoff=CUTOFF, out=torch.empty_like(base)))
    others = {
        "PyTorch's rfft2 and irfft2": lambda: torch.fft.irfft2(torch.fft.rfft2(wide), s=wide.shape),
        "one rfft2": partial(pytorch.highpass_merge, base, models, CUTOFF),
        "fft2 per model": partial(pytorch.highpass_each, base, models, CUTOFF),
    }
    times = {"cuFFT's R2C and C2R": alone(wide)} | {way: milliseconds(other, 5, 1) for way, other in others.items()}
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
    try:
        for measured in rows():
            found.append(measured)
            show(measured)
    finally:  # what has been measured counts
        if found:
            print(f"kept in {save('gpu-filter', found, **machine())}", flush=True)


if __name__ == "__main__":
    main()
