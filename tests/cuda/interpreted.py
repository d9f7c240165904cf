"""Compares Triton ops with the reference in Triton's interpreter (TRITON_INTERPRET=1), on the CPU.

interpreted.py OP…   prints a line for each op that equals the reference in all its cases; a group of the filter's cases
                     may stand for an op
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import triton.language as tl  # noqa: F401 - `patched` is looked at for both
from triton.language import core  # noqa: F401
from triton.runtime import interpreter

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "ops")]
from batches import check_batches, check_modulation, check_scattering
from combined import check_low_ranks, check_overflows, check_selections
from compiled import all_sorted
from fastmerge.kernels import cuda
from fastmerge.kernels.cuda import launch
from fastmerge.kernels.cuda.settings import settings, table
from filters import GROUPS, check_group
from magnitudes import assert_same_drops, pair
from misfits import check_misfits
from tensors import BF16, F16, F32, F64, make
from test_conformance import DEVICES, compare
from test_rows import (
    COLUMNS,
    ROWS,
    test_divergence_of_distributions,
    test_products_of_rows_are_those_of_each,
    test_what_is_no_distribution_has_no_divergence,
)

from fastmerge import dispatch

# Each case costs some tenths of a second, so a few cover what differs: dtypes, unrolled and looped numbers of models,
# whole tiles and tails.
TINY = (0, 1, 7, 64)
CASES: list[tuple[tuple[torch.dtype, ...], tuple[int, ...], tuple[int, ...]]] = [
    ((BF16,), (1, 2, 3, 4, 8, 9, 16), (1025,)),
    ((BF16,), (3,), (*TINY, 1024, 2053)),
    ((BF16,), (33, 64), (65,)),
    ((F16,), (2, 4, 9), (65, 1031)),
    ((F32,), (1, 3, 8, 9), (7, 1025)),
    ((F64,), (1, 2, 4, 5), (513,)),
    ((BF16, F32), (1, 5, 17), (1031,)),
    ((F16, BF16, F32), (3,), (65,)),
    ((F64, F16), (2, 5), (65, 515)),
]
WIDE = ("variance", "compete")  # what they write is of the working type, so that nothing they launch has 16 bits
HEAVY = ("combine",)  # many forms in each case: fewer of them
PAIRED = ("gram", "row_gram")  # which loop over pairs: many models of several dtypes are enough
DTYPES = {2: BF16, 4: F32, 8: F64}  # by bytes
Form = tuple[str, int, bool, int]  # of a launch: a key of the settings, and the number of models
launched: set[Form] = set()


class Kept:
    """In place of what would undo a patch."""

    def restore(self) -> None:
        pass


def watched() -> None:
    """Keep what is launched over models of one dtype; those of several never loop."""
    form = launch.form

    def told(
        op: str, tensors: Sequence[torch.dtype], models: Sequence[torch.dtype], aligned: bool, *others: bool
    ) -> object:
        if len(set(models)) == 1:
            launched.add((op, max(dtype.itemsize for dtype in tensors), aligned, len(models)))
        return form(op, tensors, models, aligned, *others)

    launch.form = told


def patched() -> None:
    """Most of the interpreter's time: what it does to Triton's language at each call of a function is done once for
    all, what type NumPy has for one of Triton's is remembered, and whether integers overflow, which without `debug` it
    works out for nothing, is left out.
    """
    interpreter._patch_lang(patched)
    interpreter._patch_lang = lambda _: Kept()
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    known, found = dict[str, object](), interpreter._get_np_dtype
    interpreter._get_np_dtype = lambda own: known.get(own.name) or known.setdefault(own.name, found(own))


def check(op: str) -> int:
    """The number of cases that equal the reference."""
    cases = 0
    for dtypes, models, sizes in CASES:
        for k in models if op not in PAIRED or len(dtypes) > 1 else [k for k in models if k <= 9]:
            for n in sizes if op not in HEAVY else sizes[:2]:
                inputs = [
                    make(n, dtypes[i % len(dtypes)], seed=97 * i + n, special=n > 8, misaligned=(n + i + k) % 3 == 0)
                    for i in range(k + 1)
                ]
                what = f"{'+'.join(map(str, dtypes))} K={k} n={n}"
                compare(op, "cuda", inputs, dtypes[0] if n % 2 else dtypes[-1], what)
                cases += 1
    cases += check_limits(op) + check_batches(op, "cpu") + check_misfits(op, cuda, "cpu")
    if op == "combine":
        cases += check_selections("cuda", "cpu") + check_overflows("cuda", "cpu")
    if op == "low_rank":
        cases += check_low_ranks("cuda", "cpu")
    if op == "rank_drop":
        for columns in (1, 147):  # of a tensor long enough for a part that cuts rows
            assert_same_drops(*pair((BF16, F32), 66_003), columns, ("unordered",))
        cases += 2
    if op == "row_gram":
        for columns in (COLUMNS, 8 * COLUMNS):
            test_products_of_rows_are_those_of_each("cuda", columns)
        cases += 2
    if op == "row_divergence":
        for rows in ROWS:
            for columns in (COLUMNS, 8 * COLUMNS):
                test_divergence_of_distributions("cuda", rows, 1e-3, columns)
        test_what_is_no_distribution_has_no_divergence("cuda", torch.inf)
        cases += 2 * len(ROWS) + 1
    made_ready = {"modulate": check_modulation, "scatter": check_scattering}.get(op)
    return cases + (made_ready("cpu", "cuda") if made_ready else 0)


def limits(op: str) -> set[Form]:
    """About as many models as stay in registers: one fewer, as many, and one more, over which kernels loop."""
    names = {key[0] for key, own in table().items() if key[0].partition(",")[0] == op and own.unrolled}
    widths = [widest for widest in DTYPES if op not in WIDE or widest > 2]
    keys = {(name, widest, True) for name in names for widest in widths} | {key for key in table() if key[0] in names}
    about = {key: settings(key[1], key[0], key[2]).unrolled for key in keys}
    return {(*key, k) for key, limit in about.items() for k in range(max(1, limit - 1), limit + 2)}


def check_limits(op: str) -> int:
    """Compare all that no other case has launched; of combine the sizes are some that are trimmed and dropped from."""
    missing = {form[1:] for form in limits(op) - launched}
    for widest, aligned, k in sorted(missing):
        n = next(n for n in range(65, 130) if (7 * n + k) % 64 in range(9, 16))
        count = k + 2 if op == "mask_against" else k + 1  # its first model is what it holds the others against
        inputs = [make(n, DTYPES[widest], seed=97 * i + n, misaligned=not aligned) for i in range(count)]
        compare(op, "cuda", inputs, DTYPES[widest], f"{DTYPES[widest]} K={k} n={n} {'' if aligned else 'not '}aligned")
    assert limits(op) <= launched, f"not launched: {limits(op) - launched}"
    return len(missing)


def main(ops: list[str]) -> None:
    warnings.simplefilter("ignore")  # NumPy's, of infinities and NaN
    patched()
    watched()
    dispatch.DEVICES["cuda"], DEVICES["cuda"] = ("cpu",), "cpu"
    for op in ops:
        begin = time.perf_counter()
        with all_sorted():
            cases = check_group(op, "cpu") if op in GROUPS else check(op)
        print(f"{op}: {cases} cases equal the reference ({time.perf_counter() - begin:.1f} s)", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
