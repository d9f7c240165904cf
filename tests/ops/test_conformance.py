"""Every implementation of every op, discovered by file name, against the reference: to the bit, sums to 1e-12."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import selections
import torch
from kept import WAYS, kept
from tensors import BF16, DTYPES, F16, F32, F64, assert_same_bits, assert_sums, at_odd_place, make, poisoned
from torch import Tensor

from fastmerge import dispatch, ops

KERNELS = Path(__file__).parents[2] / "kernels"
SHARED = {
    "__init__",
    "kept",
    "exponential",
    "competition",
    "module",
    "numeric",
    "parallel",
    "philox",
    "launch",
    "enqueue",
    "nvrtc",
    "cufft",
    "settings",
    "sums",
    "rows",
    "panel",
    "magnitude",
    "brackets",
    "cuts",
    "experts",
    "ranks",
    "selection_module",
    "filter_rows",
    "filter_module",
    "worksite",
    "loader",
    "unloader",
    "memory_file",
    "pages",
    "guard",
    "files_module",
    "spectrum",
    "transform",
}  # sources that are no op of their own
MIXTURES = ((BF16, F32), (F32, BF16), (F16, BF16, F32), (BF16, BF16, F64), (F64, F16))
SIZES = (0, 1, 7, 8, 31, 32, 33, 63, 64, 65, 511, 512, 513, 1009)
DEVICES = {"cuda": "cuda"}  # where a backend's tensors are, if not on the CPU
SUMS_RTOL = 1e-12  # of sums, which every backend adds up in an order of its own
BOUNDS = ((0.0, 3.0, 0.0, 8.0), (0.25, 2.0, 0.5, 4.0), (1.0, 1.0, 0.1, 0.9), (0.0, 4.0, 2.0, 2.0))  # of models in turn
ISAS = ("base", "v3", "v4")  # that native kernels are compiled for
drawn = functools.cache(make)  # for every op the same; none changes them, which is compared
WEIGHTS = [0.3 + 0.17 * i for i in range(64)]  # of models in turn
BLOCK_SIZES = (65_535, 65_536, 65_537, 200_003)


def implementations() -> list[tuple[str, str]]:
    """(backend, op) for every source file that is not the reference."""
    found = [(f.parent.name, f.stem) for f in sorted(KERNELS.glob("*/*")) if f.suffix in (".py", ".cpp")]
    return [(backend, op) for backend, op in found if op not in SHARED]


# Every form of a kernel of cuda is compiled, which takes seconds: tests/cuda has fewer cases of it.
FAST = [(backend, op) for backend, op in implementations() if backend not in ("reference", "cuda")]
TESTED = [(backend, op) for backend, op in FAST if not ops.OPS[op].tolerance]
FILTERS = [(backend, op) for backend, op in FAST if ops.OPS[op].tolerance]


def need(backend: str, op: str) -> None:
    """Skip where this machine lacks what the backend needs, never where the backend is at fault."""
    module = dispatch.load(backend)
    if isinstance(module, str) and backend == "native" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip(module)
    assert hasattr(module, op), f"{backend} has a file {op}, but no such function: {module}"


def call(op: str, backend: str, inputs: list[Tensor], out: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """The op's elementwise results and its sums. inputs: base (or g, or mask), then models."""
    base, models = inputs[0], inputs[1:]
    n, k = base.numel(), len(models)
    device = base.device
    masks, result = poisoned((k, ops.packed_bytes(n)), torch.uint8).to(device), poisoned((n,), out).to(device)
    weights = WEIGHTS[:k]

    def combine(first: Tensor | None, **options: Any) -> tuple[Tensor, Tensor]:
        combined = ops.combine(first, models, weights, out=result.clone(), backend=backend, **options)
        return combined.merged, torch.tensor(float(combined.nonfinite)).double()

    if op in selections.CALLS:
        return selections.CALLS[op](base, models, out, backend), []
    if op == "elect":
        e = ops.elect(base, models, out=(result, masks), backend=backend)
        return [e.unified, e.masks], [e.magnitude, e.kept]
    if op == "mask_against":
        others, tall = models[1:] or models, [0.4, 1.0, 0.0, -1.0] * 16
        m = ops.mask_against(base, others, models[0], backend=backend)
        t = ops.mask_against(base, others, models[0], tall=tall[: len(others)], backend=backend)
        return [m.masks, t.masks], [m.magnitude, m.kept, t.magnitude, t.kept]
    if op == "modulate":
        bits = ops.pack_bits(models[-1].double() > 0, backend="reference")
        return [ops.modulate(base, models[0], bits, 1.37, out=result, backend=backend)], []
    if op == "low_rank":
        rank, columns = 1 + k % 7, 1 + n // (1 + k % 3)
        sizes = 2 + k % 3, columns
        up, down = (make(size * rank, F32, n + k + size, special=False).to(base.device) for size in sizes)
        wide = base[n // 3 :], up.view(-1, rank), down.view(rank, -1)
        return [ops.low_rank(*wide, 0.37, first=n // 3, out=result[n // 3 :], backend=backend)], []
    if op == "combine":
        variants = [
            combine(base),
            combine(None, normalize=True),
            combine(base, consensus="max", scale=0.7),
            combine(base, normalize=True, as_delta=True),
            combine(base, kept=kept(base, models, 0, ("drops",))),
        ]
        # A few of the ways to select and vote: others at every size and number of models.
        for turn in range(7 * n + k, 7 * n + k + (40 if n < 10_000 else 20), 20):
            parts, vote = WAYS[turn % len(WAYS)]
            first, offset = base if turn % 3 else None, turn % 2 * (ops.BLOCK << 19)
            weights = [(w if i % 3 else -w) if (i + turn) % 4 else 0.0 for i, w in enumerate(weights)]
            weights[0] = 0.7
            selection = kept(first, models, offset, parts)
            variants.append(combine(first, kept=selection, offset=offset, scale=1 + turn % 2 / 4, **vote))
        return [merged for merged, _ in variants], [bad for _, bad in variants]
    if op == "blend":
        variants = []
        for inner, groups in ((1, 3), (1, 600), (5, 2 + n // 5), (700, 3), (70_000, 1 + n // 70_000)):
            table = torch.linspace(-1, 1, k * groups).view(k, groups).to(base.device)
            for first, offset in ((base, 0), (None, ops.BLOCK)):
                options = {"inner": inner, "offset": offset, "out": result.clone(), "backend": backend}
                merged = ops.blend(first, models, table, **options)
                variants.append((merged.merged, torch.tensor(float(merged.nonfinite)).double()))
        return [merged for merged, _ in variants], [bad for _, bad in variants]
    if op == "kept_sums":
        offset = n % 2 * (ops.BLOCK << 19)
        every, trim = (kept(base, models, offset, parts) for parts in (("trim", "drop", "keep"), ("trim",)))
        s, t = (ops.kept_sums(base, models, kept, offset=offset, backend=backend) for kept in (every, trim))
        return [], [s.magnitude, s.kept, t.kept]
    if op == "delta_sum":
        return [ops.delta_sum(base, models, weights, backend=backend)], []
    if op == "moments":
        s = ops.moments(base, models, backend=backend)
        return [s.peak, s.nonfinite], [s.magnitude, s.total, s.energy]
    if op == "inner_products":
        p = ops.inner_products(base, models, backend=backend)
        return [], [p.dots, p.norms, p.gradient_norm]
    if op == "gram":
        return [], [ops.gram(first, models, backend=backend) for first in (base, None)]
    if op == "row_gram":
        grams = [ops.row_gram(first, models, rows_of(n), backend=backend) for first in (base, None)]
        return [], [*grams, ops.row_gram(base, models, max(n, 1), backend=backend)]
    if op == "row_divergence":
        return [], [ops.row_divergence(base, models[-1], c, backend=backend) for c in (rows_of(n), max(n, 1))]
    if op == "variance":
        varied = ops.variance(base, models, backend=backend)
        return [varied.variance, torch.tensor(varied.nonzero)], []
    if op == "compete":
        limits = ((0.0, 3.0), (0.25, 0.7), (1.0, 1.0))  # the last of which leave no place between them
        return [
            ops.compete(base, models, (n + i) % k, least=least, most=most, backend=backend)
            for i, (least, most) in enumerate(limits)
        ], []
    if op == "balance":
        bounds = [ops.Bounds(*BOUNDS[(n + i) % len(BOUNDS)]) for i in range(k)]
        balanced = [
            ops.balance(base, models, bounds, scale=scale, out=result.clone(), backend=backend) for scale in (1, 0.7)
        ]
        return [own.merged for own in balanced], [torch.tensor(float(own.nonfinite)).double() for own in balanced]
    if op == "pack_bits":
        return [ops.pack_bits(base > 0, backend=backend)], []
    assert op == "unpack_bits"
    return [ops.unpack_bits(ops.pack_bits(base > 0, backend="reference"), (n,), backend=backend)], []


def rows_of(n: int) -> int:
    """Columns of the rows that n elements are taken to be, one row where none of these divides n."""
    return next((c for c in (1009, 21_845, 32_768, 171, 33, 8, 7) if n % c == 0), n)


def placed(tensor: Tensor, device: str) -> Tensor:
    """On the device, at an odd address there if it is at one here."""
    if device == "cpu" or not tensor.numel() or tensor.data_ptr() % 16 == 0:
        return tensor.to(device)
    return at_odd_place(tensor.to(device))


@contextmanager
def chosen(isa: str) -> Iterator[None]:
    """Native ops compute by this instruction set; of backends that have one, it is ""."""
    if not isa:
        yield
        return
    native: Any = dispatch.load("native")
    before = native.isa()
    native.set_isa(isa)
    try:
        yield
    finally:
        native.set_isa(before)


@functools.cache
def instruction_sets(backend: str) -> list[str]:
    """Those of a backend that this processor has."""
    found = []
    for isa in ISAS if backend == "native" else ("",):
        with suppress(ValueError), chosen(isa):
            found.append(isa)
    return found


def compare(op: str, backend: str, inputs: list[Tensor], out: torch.dtype, what: str) -> None:
    """By every instruction set; what goes in stays as it is."""
    device = DEVICES.get(backend, "cpu")
    expected_exact, expected_sums = call(op, "reference", inputs, out)
    sizes = [summands(op, i, inputs) for i in range(len(expected_sums))]
    given, before = [placed(x, device) for x in inputs], [x.clone() for x in inputs]
    for isa in instruction_sets(backend):
        with chosen(isa):
            exact, sums = ([t.cpu() for t in part] for part in call(op, backend, given, out))
        where = f"{backend} {isa} {op} {what}"
        for i, (a, b) in enumerate(zip(exact, expected_exact, strict=True)):
            assert_same_bits(a, b, f"{where} result {i}")
        for i, (a, b, size) in enumerate(zip(sums, expected_sums, sizes, strict=True)):
            if size is None:
                assert_sums(a, b, SUMS_RTOL, f"{where} sum {i}")
            else:
                assert_cancelled(a, b, size, f"{where} sum {i}")
        for i, (x, y) in enumerate(zip(given, before, strict=True)):
            assert_same_bits(x.cpu(), y, f"{where} input {i}")


def summands(op: str, i: int, inputs: list[Tensor]) -> Tensor | None:
    """Σ |terms| of an op's sums number i, of which terms cancel; None where all have one sign."""
    if op not in ("gram", "row_gram", "row_divergence") and (op, i) not in (("moments", 1), ("inner_products", 0)):
        return None
    base, *models = inputs
    wide, n = base.to(ops.working_dtype(inputs)), base.numel()
    taus = torch.stack([ops.delta_sum(wide, [m], backend="reference").double() for m in models])
    thetas = torch.stack([m.double() for m in models])
    columns = rows_of(n) if i < (1 if op == "row_divergence" else 2) else max(n, 1)
    if op == "moments":
        return taus.abs().sum(1)
    if op == "inner_products":
        return (base.double() * thetas).abs().sum(1)
    if op == "row_divergence":
        p, q = (x.view(-1, columns).softmax(1) + 1e-8 for x in (thetas[-1], base.double()))
        return (p * ((p / q).log().abs() + 1)).sum(1)  # p is right to 1e-16
    vectors = (thetas if i == 1 else taus).abs()
    rows = vectors[:, None] if op == "gram" else vectors.view(len(models), -1, columns)
    return torch.stack([(row * rows).sum(2) for row in rows])


def assert_cancelled(actual: Tensor, expected: Tensor, sizes: Tensor, what: str) -> None:
    """Right to the sum of their terms' magnitudes; where that is not finite, neither are they."""
    actual, expected, sizes = actual.flatten(), expected.flatten(), sizes.flatten()
    assert actual.shape == sizes.shape, what
    finite = sizes.isfinite()
    assert ((actual - expected).abs() <= SUMS_RTOL * sizes)[finite].all(), f"{what}: {actual} and {expected}"
    assert not actual[~finite].isfinite().any(), f"{what}: {actual} and {expected}"


def name(dtypes: tuple[torch.dtype, ...]) -> str:
    return "+".join(str(d).removeprefix("torch.") for d in dtypes)


def test_every_source_is_an_op() -> None:
    """A file in kernels/ is an op with a record, or named as shared; every op has a reference."""
    assert {op for _, op in implementations()} == set(ops.OPS)
    assert {op for backend, op in implementations() if backend == "reference"} == set(ops.OPS)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize("dtypes", [*((d,) for d in DTYPES), *MIXTURES], ids=name)
@pytest.mark.parametrize(("backend", "op"), TESTED)
def test_conforms(backend: str, op: str, dtypes: tuple[torch.dtype, ...], k: int) -> None:
    """Bits of the reference for every size, special value, odd address, and output dtype."""
    need(backend, op)
    for n in SIZES:
        inputs = [
            drawn(n, dtypes[i % len(dtypes)], seed=97 * i + n, special=n > 8, misaligned=(n + i) % 3 == 0)
            for i in range(k + 1)
        ]
        compare(op, backend, inputs, dtypes[0] if n % 2 else dtypes[-1], f"n={n}")


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("dtypes", [*((d,) for d in DTYPES), *MIXTURES], ids=name)
@pytest.mark.parametrize(("backend", "op"), FILTERS)
def test_filter_conforms(backend: str, op: str, dtypes: tuple[torch.dtype, ...], k: int) -> None:
    """Within the tolerance of the reference for every shape and alignment, where either region is transformed."""
    need(backend, op)
    for h, w in ((1, 1), (8, 8), (3, 171), (64, 9), (33, 64), (65, 1009)):
        base, *models = (
            make(h * w, dtypes[i % len(dtypes)], seed=97 * i + h, special=False, misaligned=(w + i) % 3 == 0).view(h, w)
            for i in range(k + 1)
        )
        largest = ops.delta_sum(base, models, WEIGHTS[:k]).abs().max()
        for cutoff in (0.3, 1.3):
            expected = filtered(op, "reference", base, models, cutoff)
            tolerance = 1e-13 if expected.dtype == F64 else ops.OPS[op].tolerance
            for isa in instruction_sets(backend):
                with chosen(isa):
                    found = filtered(op, backend, base, models, cutoff)
                size = max(largest, found.abs().max(), expected.abs().max())
                assert (found - expected).abs().max() <= 1.3 * tolerance * size, f"{isa} {h} × {w} cutoff {cutoff}"


def filtered(op: str, backend: str, base: Tensor, models: list[Tensor], cutoff: float) -> Tensor:
    """The weighted sum of task vectors without its low frequencies, or the merge of it, in the working type."""
    weights, wide = WEIGHTS[: len(models)], ops.working_dtype([base, *models])
    if op == "highpass":
        return ops.highpass(ops.delta_sum(base, models, weights), cutoff=cutoff, backend=backend)
    options = {"cutoff": cutoff, "scale": 1.3, "dtype": wide, "backend": backend}
    return ops.highpass_merge(base, models, weights, **options).merged


@pytest.mark.parametrize("special", [False, True], ids=["finite", "special"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("backend", "op"), TESTED)
def test_conforms_around_blocks(backend: str, op: str, dtype: torch.dtype, special: bool) -> None:
    """The same where a tensor is about a block, or several."""
    need(backend, op)
    for n in BLOCK_SIZES:
        inputs = [drawn(n, dtype, seed=i + n, special=special) for i in range(4)]
        compare(op, backend, inputs, dtype, f"n={n}")


@pytest.mark.parametrize("out", DTYPES, ids=str)
@pytest.mark.parametrize(("backend", "op"), [(b, o) for b, o in TESTED if o in ("elect", "modulate", "combine")])
def test_rounds_once(backend: str, op: str, out: torch.dtype) -> None:
    """float64 inputs near the middle of two 16-bit values, where rounding twice would go wrong."""
    need(backend, op)
    generator = torch.Generator().manual_seed(5)
    middle = make(4096, BF16, 3, special=False).double() * (1 + 2.0**-8)
    inputs = [middle * (1 + (torch.rand(4096, generator=generator).double() - 0.5) * 2.0**-30) for _ in range(3)]
    inputs[0] = torch.zeros(4096).double()
    compare(op, backend, inputs, out, str(out))


@pytest.mark.parametrize("k", [32, 64])
@pytest.mark.parametrize(("backend", "op"), TESTED)
def test_conforms_with_many_models(backend: str, op: str, k: int) -> None:
    need(backend, op)
    compare(op, backend, [make(1009, BF16, seed=i) for i in range(k + 1)], BF16, f"k={k}")


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    need("native", "elect")
    from fastmerge.kernels import native

    before = native.threads()
    yield native.set_threads
    native.set_threads(before)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", [op for backend, op in TESTED if backend == "native"])
def test_threads_do_not_matter(op: str, isa: str, threads: Callable[[int], None]) -> None:
    """One, two and five threads give the same bits, sums included."""
    inputs = [make(500_009, BF16, seed=i) for i in range(4)]
    if isa not in instruction_sets("native"):
        pytest.skip(f"this processor has no {isa}")
    with chosen(isa):
        threads(1)
        expected = call(op, "native", inputs, BF16)
        for count in (2, 5):
            threads(count)
            for a, b in zip(chain(*call(op, "native", inputs, BF16)), chain(*expected), strict=True):
                assert_same_bits(a, b, f"{op} on {count} threads")


@pytest.mark.parametrize("op", [op for backend, op in TESTED if backend == "native"])
def test_calls_share_threads(op: str, threads: Callable[[int], None]) -> None:
    """Calls at the same time give the bits that each gives alone."""
    inputs = [[make(200_009, BF16, seed=10 * j + i) for i in range(4)] for j in range(4)]
    expected = [call(op, "native", own, BF16) for own in inputs]
    for count in (2, 3):
        threads(count)
        with ThreadPoolExecutor(len(inputs)) as pool:
            found = list(pool.map(lambda own: call(op, "native", own, BF16), inputs))
        for a, b in zip(chain(*chain(*found)), chain(*chain(*expected)), strict=True):
            assert_same_bits(a, b, f"{op} on {count} threads")


@pytest.mark.parametrize("isa", [*ISAS, "v5"])
def test_instruction_set_is_chosen(isa: str, tmp_path: Path) -> None:
    """By the environment, where this processor has it."""
    need("native", "elect")
    has = isa in instruction_sets("native")
    program = f"from fastmerge import dispatch; m = dispatch.load('native'); print(m if {not has} else m.isa())"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"FASTMERGE_ISA": isa},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not run.returncode, run.stderr
    assert run.stdout.strip() == isa if has else f"FASTMERGE_ISA: instruction set {isa}" in run.stdout
