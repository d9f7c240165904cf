"""Machine code of every kernel, compiled without a GPU, held to what makes it fast and exact; gates that can fail."""

from __future__ import annotations

import collections
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed")
import triton.language as tl  # noqa: E402
from fastmerge.kernels.cuda import launch  # noqa: E402
from fastmerge.kernels.cuda.elect import elect_looped, elect_unrolled  # noqa: E402
from fastmerge.kernels.cuda.modulate import modulate_tile  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
RELEASE = tuple(int(part) for part in triton.__version__.split(".")[:2])
TARGETS = [80, 90] + ([100] if RELEASE >= (3, 9) else [])
MOST_REGISTERS = 128  # a thread, so that 512 threads fit on a multiprocessor


@dataclass
class Code:
    """What the gates look at."""

    registers: int
    stack: int
    local: int
    instructions: collections.Counter[str]


def compiled(kernel: Any, target: int, constants: dict[str, Any], dtype: str = "bf16", aligned: bool = True) -> Code:
    pointer = f"*{dtype}"
    kinds: dict[str, Any] = {
        "base": pointer,
        "unified": pointer,
        "out": pointer,
        "models": "i32" if "ELEMENT" in constants else (pointer,) * constants.get("K", 0),
        "masks": "*u8",
        "mask": "*u8",
        "table": "*i64",
        "sums": "*fp64",
        "scale": "*fp64",
        "n": "i64",
        "words": "i64",
    }
    signature = {name: "constexpr" if name in constants else kinds[name] for name in kernel.arg_names}
    attributes: dict[tuple[int, ...], Any] = {}
    for i, kind in enumerate(signature.values()):
        paths = [(i, j) for j in range(len(kind))] if isinstance(kind, tuple) else [(i,)]
        if aligned and (isinstance(kind, tuple) or kind.startswith("*")):
            attributes |= {path: [["tt.divisibility", 16]] for path in paths}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": launch.settings(4 if dtype != "fp64" else 8).warps} | launch.OPTIONS
    return read(triton.compile(source, target=GPUTarget("cuda", target, 32), options=options).asm["cubin"])


def read(cubin: bytes) -> Code:
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "kernel.cubin"
        file.write_bytes(cubin)
        usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", file], capture_output=True, text=True, check=True)
        listing = subprocess.run([TOOLS / "nvdisasm", "-c", file], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage.stdout + usage.stderr)
    assert found
    lines = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", listing, re.MULTILINE)
    return Code(int(found[1]), int(found[2]), int(found[3]), collections.Counter(lines))


def objections(code: Code) -> list[str]:
    """What is wrong with a kernel's machine code."""
    names = code.instructions
    found = []
    if code.registers > MOST_REGISTERS:
        found.append(f"{code.registers} registers")
    if code.stack or code.local or any(name.startswith(("LDL", "STL")) for name in names):
        found.append("spills to memory")
    if not any(name.startswith("LDG") and ".128" in name for name in names):
        found.append("no 128-bit loads")
    if any(name.startswith(("FFMA", "DFMA", "HFMA2.BF16")) for name in names):
        found.append("fused multiplication and addition")
    return found


def constants(k: int, working: Any = tl.float32) -> dict[str, Any]:
    tile = launch.settings(8 if working is tl.float64 else 4).tile
    if k > launch.UNROLLED:
        return {"ELEMENT": tl.bfloat16, "ALIGNED": 16, "TILE": tile, "WORKING": working}
    return {"K": k, "TILE": tile, "WORKING": working}


KERNELS = [(elect_unrolled, constants(k)) for k in (1, 2, 3, 4)] + [(elect_looped, constants(5))]
KERNELS += [(modulate_tile, {key: value for key, value in constants(1).items() if key != "K"})]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("kernel", "given"), KERNELS, ids=[f"{k.__name__}-K{c.get('K', 'any')}" for k, c in KERNELS])
def test_machine_code(kernel: Any, given: dict[str, Any], target: int) -> None:
    """No spills, whole loads, no fused arithmetic, few registers."""
    assert objections(compiled(kernel, target, given)) == []


def test_registers_gate_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "MOST_REGISTERS", 8)
    assert any("registers" in o for o in objections(compiled(elect_unrolled, 90, constants(3))))


def test_load_gate_can_fail() -> None:
    """Pointers that promise no alignment are loaded piece by piece."""
    assert "no 128-bit loads" in objections(compiled(elect_unrolled, 90, constants(3), aligned=False))


@triton.jit
def fusing(base, unified, out, n, TILE: tl.constexpr):
    offsets = tl.program_id(0) * TILE + tl.arange(0, TILE)
    x = tl.load(base + offsets).to(tl.float32)
    tl.store(out + offsets, tl.fma(x, x, tl.load(unified + offsets).to(tl.float32)).to(tl.bfloat16))


def test_fusion_gate_can_fail() -> None:
    assert "fused multiplication and addition" in objections(compiled(fusing, 90, {"TILE": 1024}))


@triton.jit
def spilling(base, unified, out, n, TILE: tl.constexpr):
    """Keeps more values alive than there are registers."""
    offsets = tl.arange(0, TILE)
    values = ()
    for i in tl.static_range(40):
        values = values + (tl.load(base + offsets + i * TILE),)
    total = tl.load(unified + offsets)
    for i in tl.static_range(40):
        total = total * values[39 - i] + values[i]
    tl.store(out + offsets, total)


def test_spill_gate_can_fail() -> None:
    assert "spills to memory" in objections(compiled(spilling, 90, {"TILE": 2048}, dtype="fp32"))


def test_settings() -> None:
    """A tile divides a block, so that tile sums add up to block sums; a thread's loads are at most 16 bytes wide."""
    for widest in (2, 4, 8):
        chosen = launch.settings(widest)
        assert launch.BLOCK % chosen.tile == 0
        assert chosen.tile % (32 * chosen.warps) == 0
        assert chosen == launch.settings(widest)


@pytest.mark.parametrize(
    ("capability", "version", "refused"),
    [((9, 0), "3.6.0", False), ((10, 0), "3.6.0", True), ((10, 0), "3.9.0", False), ((7, 5), "3.9.0", True)],
)
def test_rejections(capability: tuple[int, int], version: str, refused: bool) -> None:
    assert (launch.rejection(capability, version) is not None) == refused
