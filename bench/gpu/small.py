"""Each op once, of few elements and in every form that differs in memory accesses: what compute-sanitizer watches."""

from __future__ import annotations

import torch
from calls import arguments, calls, implemented
from fastmerge.kernels import cuda
from timing import DEVICE

SIZE = 65_536 + 1027  # two blocks, the last tile not whole
SHAPES = (25, 40), (25, 40), (3, 21), (259, 257)  # the last of them of two blocks too


def main() -> None:
    for dtype, k in ((torch.bfloat16, 3), (torch.bfloat16, 9), (torch.float32, 3)):
        base, *models = (torch.randn(SIZE, device=DEVICE).to(dtype) for _ in range(k + 1))
        for name, call in calls(base, models, None).items():
            if implemented(name, "cuda"):
                call()
        for op in [name.removesuffix("_many") for name in cuda.__all__ if name.endswith("_many")]:
            jobs = [arguments(op, base[: h * w], [m[: h * w] for m in models], (h, w)) for h, w in SHAPES]
            getattr(cuda, f"{op}_many")(jobs)


if __name__ == "__main__":
    main()
    torch.cuda.synchronize()
    print("every op has run")
