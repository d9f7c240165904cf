"""Compares Triton ops with the reference in Triton's interpreter (TRITON_INTERPRET=1), on the CPU.

interpreted.py OP…   prints a line for each op that equals the reference in all its cases
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import torch
import triton.language as tl  # noqa: F401 - `patched` is looked at for both
from triton.language import core  # noqa: F401
from triton.runtime import interpreter

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "ops")]
from batches import check_batches, check_scattering
from fastmerge.kernels import cuda
from misfits import check_misfits
from tensors import BF16, F16, F32, F64, make
from test_conformance import DEVICES, compare

from fastmerge import dispatch

# Each case costs some tenths of a second, so a few cover what differs: dtypes, unrolled and looped numbers of models,
# whole tiles and tails.
TINY = (0, 1, 7, 64)
CASES: list[tuple[tuple[torch.dtype, ...], tuple[int, ...], tuple[int, ...]]] = [
    ((BF16,), (1, 2, 3, 4, 8, 9, 16), (1025,)),
    ((BF16,), (3,), (*TINY, 1024, 2053)),
    ((F16,), (2, 9), (65, 1031)),
    ((F32,), (1, 3, 8, 9), (7, 1025)),
    ((F64,), (1, 5), (513,)),
    ((BF16, F32), (1, 5, 17), (1031,)),
    ((F16, BF16, F32), (3,), (65,)),
    ((F64, F16), (2, 5), (65, 515)),
]
HEAVY = ("combine",)  # many forms in each case: fewer of them


class Kept:
    """In place of what would undo a patch."""

    def restore(self) -> None:
        pass


def patched() -> None:
    """What the interpreter does to Triton's language at each call of a function, once for all: half of its time."""
    interpreter._patch_lang(patched)
    interpreter._patch_lang = lambda _: Kept()


def check(op: str) -> int:
    """The number of cases that equal the reference."""
    cases = 0
    for dtypes, models, sizes in CASES:
        for k in models:
            for n in sizes if op not in HEAVY else sizes[:2]:
                inputs = [
                    make(n, dtypes[i % len(dtypes)], seed=97 * i + n, special=n > 8, misaligned=(n + i + k) % 3 == 0)
                    for i in range(k + 1)
                ]
                what = f"{'+'.join(map(str, dtypes))} K={k} n={n}"
                compare(op, "cuda", inputs, dtypes[0] if n % 2 else dtypes[-1], what)
                cases += 1
    cases += check_batches(op, "cpu") + check_misfits(op, cuda, "cpu")
    return cases + (check_scattering("cpu", "cuda") if op == "scatter" else 0)


def main(ops: list[str]) -> None:
    warnings.simplefilter("ignore")  # NumPy's, of infinities and NaN
    patched()
    dispatch.DEVICES["cuda"], DEVICES["cuda"] = ("cpu",), "cpu"
    for op in ops:
        begin = time.perf_counter()
        cases = check(op)
        print(f"{op}: {cases} cases equal the reference ({time.perf_counter() - begin:.1f} s)", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
