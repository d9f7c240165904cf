"""Machine code of everything that the ops launch, compiled without a GPU, held to what makes it fast and exact.

The gates are shown to fail where they should. What -m aot adds is every dtype, number of models and form.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")
import compiled  # noqa: E402
import triton.language as tl  # noqa: E402
from batches import job  # noqa: E402
from calls import OF_BYTES, STANDS_FOR, calls  # noqa: E402
from compiled import OPS, TARGETS, Code, compiling, objections, read  # noqa: E402
from fastmerge.kernels import cuda  # noqa: E402
from fastmerge.kernels.cuda import enqueue, launch, settings  # noqa: E402
from kept import WAYS, kept  # noqa: E402
from tensors import BF16, DTYPES, F16, F32, F64  # noqa: E402

from fastmerge import ops  # noqa: E402

N, COLUMNS = 65_536, 1000  # of a product whose rows begin at odd places
NAMES = [name for name in calls(torch.zeros(N), [torch.zeros(N)]) if name.partition(",")[0] in OPS]
MANY = [op for op in OPS if hasattr(cuda, f"{op}_many")]
FEW = [((BF16,), 3), ((BF16,), 8), ((BF16,), 9), ((F32,), 3)]
ALL = [((dtype,), k) for dtype in DTYPES for k in (1, 4, 8, 9)] + [
    ((BF16, F32), 3),
    ((F16, BF16, F64), 5),
    ((BF16, F32), 17),
]
# As many checkpoints of a pool as stay in registers.
OF_A_POOL = [("inner_products", ((dtype,), 16 if dtype == F32 else 12)) for dtype in DTYPES]
OF_ONE_DTYPE = {"gather", "scatter"}  # which refuse an expert whose values are of another than theta
CASES = [(name, form) for name in NAMES for form in ALL if name not in OF_ONE_DTYPE or len(form[0]) == 1]
CASES += OF_A_POOL


def inputs(dtypes: tuple[torch.dtype, ...], k: int, aligned: bool = True) -> list[torch.Tensor]:
    tensors = [torch.zeros(N + 8, dtype=dtypes[i % len(dtypes)]) for i in range(k + 1)]
    return [t[:N] if aligned else t[1 : N + 1] for t in tensors]


def launched(capability: int, call: Callable[[], object]) -> list[Code]:
    with compiling(capability) as found:
        call()
    return [*map(read, found.values())]


def complaints(capability: int, call: Callable[[], object]) -> list[str]:
    codes = launched(capability, call)
    assert codes, "nothing was launched"
    return [f"{code.name}: {objection}" for code in codes for objection in objections(code)]


def call_of(name: str, dtypes: tuple[torch.dtype, ...], k: int, aligned: bool = True) -> Callable[[], object]:
    base, *models = inputs(dtypes, k, aligned)
    return calls(base, models, "cuda")[name]


def ids(form: Any) -> str:
    """How a set of dtypes, or one with a number of models, is called."""
    if isinstance(form[0], tuple):
        return f"{ids(form[0])}-K{form[1]}"
    return "+".join(str(d).removeprefix("torch.") for d in form)


@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_machine_code(name: str, capability: int) -> None:
    """No spills, whole loads, no fused arithmetic, few registers; on one target of more than one form."""
    for dtypes, k in FEW if capability == 90 else FEW[:1]:
        assert complaints(capability, call_of(name, dtypes, k)) == [], (ids(dtypes), k)


@pytest.mark.parametrize("entry", settings.table(), ids=str)
def test_machine_code_of_every_entry(entry: settings.Key, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the settings: it is what its call is compiled by, with models that stay in registers."""
    name, size, aligned = entry
    chosen, used = settings.table()[entry], list[settings.Settings]()
    look_up = launch.settings
    monkeypatch.setattr(launch, "settings", lambda *of: used.append(look_up(*of)) or used[-1])
    launch.form.cache_clear()
    k = min(3, max(1, chosen.unrolled))
    found = complaints(90, call_of(STANDS_FOR.get(name, name), (OF_BYTES[size],), k, aligned))
    assert [o for o in found if aligned or "128-bit" not in o] == []
    assert any(own is chosen for own in used)


def runs_of(runs: str, dtypes: tuple[torch.dtype, ...], k: int) -> Callable[[], object]:
    """blend of tensors whose weights are of each element, or of a few in a row."""
    base, *models = inputs(dtypes, k)
    groups, inner = {"single": (4096, 1), "any": (100, 7)}[runs]
    table = torch.zeros(k, groups)
    return lambda: ops.blend(base, models, table, inner=inner, backend="cuda")


def product_of(dtypes: tuple[torch.dtype, ...], _: int) -> Callable[[], object]:
    """low_rank of rows that begin where wide loads may not."""
    base, *_ = inputs(dtypes, 0)
    up, down = torch.zeros(-(-N // COLUMNS), 2), torch.zeros(2, COLUMNS)
    return lambda: ops.low_rank(base, up, down, backend="cuda")


def of_single_elements(dtypes: tuple[torch.dtype, ...], k: int) -> Callable[[], object]:
    """rank_drop of rows of one column, whose ranks need not be read."""
    base, *models = inputs(dtypes, k)
    return lambda: ops.rank_drop(base, models, 1, range(k), [torch.zeros(1, dtype=torch.int64)] * k, backend="cuda")


OTHER_FORMS: dict[str, Callable[..., Callable[[], object]]] = {
    **{f"blend, {runs}": functools.partial(runs_of, runs) for runs in ("single", "any")},
    "low_rank, uneven": product_of,
    "rank_drop, alone": of_single_elements,
}
NARROW = ("low_rank, uneven", "rank_drop, alone")  # forms without wide loads


def complaints_of_form(capability: int, name: str, dtypes: tuple[torch.dtype, ...], k: int) -> list[str]:
    found = complaints(capability, OTHER_FORMS[name](dtypes, k))
    return [o for o in found if name not in NARROW or "128-bit" not in o]


@pytest.mark.parametrize("name", OTHER_FORMS)
def test_machine_code_of_other_forms(name: str) -> None:
    assert complaints_of_form(90, name, (BF16,), 3) == []


@pytest.mark.aot
@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize("form", ALL, ids=ids)
@pytest.mark.parametrize("name", OTHER_FORMS)
def test_all_machine_code_of_other_forms(name: str, form: tuple[tuple[torch.dtype, ...], int], capability: int) -> None:
    assert complaints_of_form(capability, name, *form) == []


@pytest.mark.parametrize("op", MANY)
def test_machine_code_of_batches(op: str) -> None:
    assert complaints(90, lambda: getattr(cuda, f"{op}_many")([job(op, N, 3, BF16, "cpu")] * 2)) == []


@pytest.mark.parametrize("name", ["elect", "moments"])
def test_machine_code_at_odd_addresses(name: str) -> None:
    """Of those that take the most registers, and of as many models as stay there."""
    found = complaints(90, call_of(name, (BF16,), 4, aligned=False))
    assert [o for o in found if "128-bit" not in o] == []


@pytest.mark.aot
@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize(("name", "form"), CASES, ids=lambda part: part if isinstance(part, str) else ids(part))
def test_all_machine_code(name: str, form: tuple[tuple[torch.dtype, ...], int], capability: int) -> None:
    assert complaints(capability, call_of(name, *form)) == []


@pytest.mark.aot
@pytest.mark.parametrize(("name", "form"), CASES, ids=lambda part: part if isinstance(part, str) else ids(part))
def test_all_machine_code_at_odd_addresses(name: str, form: tuple[tuple[torch.dtype, ...], int]) -> None:
    found = complaints(90, call_of(name, *form, aligned=False))
    assert [o for o in found if "128-bit" not in o] == []


@pytest.mark.aot
@pytest.mark.parametrize("k", [3, 8, 9])
@pytest.mark.parametrize("way", range(len(WAYS)))
def test_all_ways_to_combine(way: int, k: int) -> None:
    base, *models = inputs((BF16,), k)
    parts, vote = WAYS[way]
    selection = kept(base, models, 0, parts)
    call = lambda: ops.combine(base, models, kept=selection, backend="cuda", **vote)  # noqa: E731
    assert complaints(90, call) == []


@pytest.mark.aot
@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("k", [3, 9])
@pytest.mark.parametrize("op", MANY)
def test_all_machine_code_of_batches(op: str, k: int, dtype: torch.dtype, capability: int) -> None:
    assert complaints(capability, lambda: getattr(cuda, f"{op}_many")([job(op, N, k, dtype, "cpu")] * 2)) == []


def test_registers_gate_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "MOST_REGISTERS", 8)
    assert any("registers" in c for c in complaints(90, call_of("elect", (BF16,), 3)))


@pytest.mark.parametrize("name", ["elect", "unpack_bits"])
def test_gates_of_wide_accesses_can_fail(name: str) -> None:
    """What promises no alignment is moved piece by piece."""
    base, *models = inputs((BF16,), 3, aligned=False)
    packed, flags = torch.zeros(N // 8 + 1, dtype=torch.uint8)[1:], torch.zeros(N + 1, dtype=torch.bool)[1:]
    call = {
        "elect": lambda: ops.elect(base, models, backend="cuda"),
        "unpack_bits": lambda: ops.unpack_bits(packed, (N,), out=flags, backend="cuda"),
    }[name]
    assert any("no 128-bit" in c for c in complaints(90, call))


@triton.jit
def fusing(x, out, SIZE: tl.constexpr):
    offsets = tl.arange(0, SIZE)
    value = tl.load(x + offsets)
    tl.store(out + offsets, tl.fma(value, value, value))


@triton.jit
def dividing_and_fusing(x, out, SIZE: tl.constexpr):
    offsets = tl.arange(0, SIZE)
    value = tl.load(x + offsets)
    tl.store(out + offsets, tl.div_rn(tl.fma(value, value, value), value + 1.0))


@triton.jit
def contracting(x, out, SIZE: tl.constexpr):
    offsets = tl.arange(0, SIZE)
    value = tl.load(x + offsets)
    tl.store(out + offsets, value * value + value)


@triton.jit
def dividing(x, out, SIZE: tl.constexpr):
    offsets = tl.arange(0, SIZE)
    value = tl.load(x + offsets)
    tl.store(out + offsets, tl.abs(tl.div_rn(value, value + 1.0)))


@pytest.mark.parametrize(
    ("kernel", "options", "objects"),
    [
        pytest.param(fusing, enqueue.OPTIONS, True, id="fusing"),
        pytest.param(dividing_and_fusing, enqueue.OPTIONS, True, id="dividing-and-fusing"),
        pytest.param(contracting, {"enable_fp_fusion": True}, True, id="contracting"),
        pytest.param(contracting, enqueue.OPTIONS, False, id="told-not-to-contract"),
        pytest.param(dividing, enqueue.OPTIONS, False, id="dividing"),
    ],
)
def test_fusion_gate(kernel: Any, options: dict[str, Any], objects: bool) -> None:
    x = torch.zeros(1024)
    found = complaints(90, lambda: kernel[(1,)](x, x, SIZE=1024, **options))
    assert ("fused multiplication and addition" in " ".join(found)) == objects


@triton.jit
def striding(x, out, stride, SIZE: tl.constexpr):
    offsets = tl.arange(0, SIZE)
    tl.store(out + offsets, tl.load(x + tl.program_id(0) * stride + offsets))


def test_address_gate_can_fail() -> None:
    x = torch.zeros(1024)
    found = complaints(90, lambda: striding[(1,)](x, x, 48, SIZE=1024, **enqueue.OPTIONS))
    assert "striding: an address is counted in 32 bits" in found


@triton.jit
def spilling(x, out, SIZE: tl.constexpr):
    """Keeps more values alive than there are registers."""
    offsets = tl.arange(0, SIZE)
    values = ()
    for i in tl.static_range(40):
        values = values + (tl.load(x + offsets + i * SIZE),)
    total = tl.load(out + offsets)
    for i in tl.static_range(40):
        total = total * values[39 - i] + values[i]
    tl.store(out + offsets, total)


@pytest.mark.parametrize("models", [1, 8])
def test_spill_gate_can_fail(models: int) -> None:
    x = torch.zeros(1024)
    (code,) = launched(90, lambda: spilling[(1,)](x, x, SIZE=2048, **enqueue.OPTIONS))
    assert "spills to memory" in objections(replace(code, models=models))


def test_settings() -> None:
    """Spans of tiles divide a block, so that their sums add up to block sums; tiles are whole for every thread."""
    assert {op for op, *_ in settings.table()} <= {"*", *ops.OPS, *NAMES}
    for chosen in settings.table().values():
        assert launch.BLOCK % (chosen.tile * chosen.tiles) == 0
        assert chosen.tile % (32 * chosen.warps) == 0
    assert settings.settings(F64.itemsize, "blend") == settings.settings(F64.itemsize), "which has no entry of its own"


def test_settings_at_odd_addresses() -> None:
    """Of their own where they have an entry, else those of aligned tensors."""
    assert settings.settings(BF16.itemsize, "elect", aligned=False) != settings.settings(BF16.itemsize, "elect")
    assert settings.settings(F32.itemsize, "elect", aligned=False) == settings.settings(F32.itemsize, "elect")


@pytest.mark.parametrize(
    ("capability", "version", "refused"),
    [
        ((9, 0), "3.6.0", False),
        ((9, 0), "3.5.1", True),
        ((10, 0), "3.6.0", True),
        ((10, 0), "3.9.0", False),
        ((7, 5), "3.9.0", True),
    ],
)
def test_rejections(capability: tuple[int, int], version: str, refused: bool) -> None:
    assert (launch.rejection(capability, version) is not None) == refused
