"""CUDA C++ kernels, compiled by NVRTC without a GPU: machine code is held to what makes it fast, and PTX that the CPU
runs to the reference's bits; gates can fail."""

from __future__ import annotations

import collections
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed")
import executed  # noqa: E402
import ptx  # noqa: E402
import torch  # noqa: E402
from fastmerge.kernels.cuda import brackets, magnitude, nvrtc  # noqa: E402
from magnitudes import (  # noqa: E402
    PAIRS,
    assert_same_cuts,
    assert_same_drops,
    assert_same_expert,
    assert_same_experts,
    assert_same_histograms,
    pair,
)
from selections import ranks_of  # noqa: E402
from tensors import BF16, F64  # noqa: E402
from torch import Tensor  # noqa: E402

try:
    nvrtc.library()
except RuntimeError as error:
    pytest.skip(str(error), allow_module_level=True)

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SOURCES = sorted(file.name for file in Path(nvrtc.__file__).parent.glob("*.cu"))
# GPUs, and the dtypes of base and model: bfloat16; float16 and float32; float64 and bfloat16.
CASES = [((8, 0), 0, 0), ((9, 0), 0, 0), ((10, 0), 0, 0), ((9, 0), 1, 2), ((9, 0), 3, 0)]
KERNELS = {"histogram", "histogram_wide", "count_selected", "collect_selected", "sample", "collect_between", "narrow"}
KERNELS |= {"rank_drop"}
# What narrow reads, many times, is small and in the cache; elements of a sample lie far apart.
ALLOWED = {"sample": ["no 128-bit loads"], "narrow": ["no 128-bit loads"]}
MOST_REGISTERS = 64  # a thread, so that 1024 threads fit on a multiprocessor


@dataclass
class Code:
    """What the gates look at."""

    registers: int
    stack: int
    local: int
    instructions: collections.Counter[str]


def read(cubin: bytes, folder: Path) -> dict[str, Code]:
    """Every kernel's."""
    file = folder / "kernels.cubin"
    file.write_bytes(cubin)
    usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", file], capture_output=True, text=True, check=True)
    listing = subprocess.run([TOOLS / "nvdisasm", "-c", file], capture_output=True, text=True, check=True).stdout
    texts = dict(re.findall(r"\.section\s+\.text\.(\w+)(.*?)(?=\.section\s+\.text\.|\Z)", listing, re.DOTALL))
    pattern = r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)"
    return {
        name: Code(
            int(registers),
            int(stack),
            int(local),
            collections.Counter(
                re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", texts[name], re.MULTILINE)
            ),
        )
        for name, registers, stack, local in re.findall(pattern, usage.stdout + usage.stderr)
    }


def objections(code: Code) -> list[str]:
    names, found = code.instructions, []
    if code.registers > MOST_REGISTERS:
        found.append(f"{code.registers} registers")
    if code.stack or code.local or any(name.startswith(("LDL", "STL")) for name in names):
        found.append("spills to memory")
    if not any(name.startswith("LDG") and ".128" in name for name in names):
        found.append("no 128-bit loads")
    if any(name.startswith(("FFMA", "DFMA")) for name in names):
        found.append("fused multiplication and addition")
    return found


@pytest.mark.parametrize(("capability", "base", "model"), CASES, ids=str)
def test_machine_code(capability: tuple[int, int], base: int, model: int, tmp_path: Path) -> None:
    """No spills, whole loads, no fused arithmetic, few registers."""
    defines = {"BASE": base, "MODEL": model}
    found = {}
    for source in SOURCES:
        found |= read(nvrtc.compile_source(nvrtc.source_of(source), capability, defines), tmp_path)
    assert set(found) == KERNELS
    assert {name: objections(code) for name, code in found.items()} == {name: ALLOWED.get(name, []) for name in KERNELS}


@pytest.mark.parametrize("slots", range(2, brackets.SLOTS + 1))
@pytest.mark.parametrize(("capability", "base", "model"), [*CASES[:2], ((9, 0), 1, 2), ((9, 0), 2, 2)], ids=str)
def test_machine_code_of_several_brackets(
    capability: tuple[int, int], base: int, model: int, slots: int, tmp_path: Path
) -> None:
    """All that a thread reads of them is loaded before the first is looked into."""
    defines = {"BASE": base, "MODEL": model, "SLOTS": slots}
    code = read(nvrtc.compile_source(nvrtc.source_of(magnitude.SOURCE), capability, defines), tmp_path)[
        "collect_between"
    ]
    assert not objections(code)
    loads = sum(count for name, count in code.instructions.items() if name.startswith("LDG") and ".128" in name)
    assert loads == (1 + (base == 2)) + slots * (1 + (model == 2))


# Kernels that are at fault in one way each.
FAULTS = {
    "no 128-bit loads": "out[threadIdx.x] = in[threadIdx.x];",
    "spills to memory": "float x[300]; for (int i = 0; i < 900; ++i) x[(int)in[i]] += 1; out[0] = x[(int)in[7]];",
    "fused multiplication and addition": "out[0] = __fmaf_rn(in[0], in[1], in[2]);",
}


@pytest.mark.parametrize("expected", FAULTS)
def test_gate_can_fail(expected: str, tmp_path: Path) -> None:
    source = f'extern "C" __global__ void faulty(const float* in, float* out) {{ {FAULTS[expected]} }}'
    assert expected in objections(read(nvrtc.compile_source(source, (9, 0), {}), tmp_path)["faulty"])


def test_registers_gate_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "MOST_REGISTERS", 8)
    code = read(nvrtc.compile_source(nvrtc.source_of(magnitude.SOURCE), (9, 0), {"BASE": 0, "MODEL": 0}), tmp_path)
    assert any("registers" in objection for objection in objections(code["histogram"]))


def test_machine_code_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the same source, GPU and options; a cache that cannot be written to is no obstacle."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = 'extern "C" __global__ void nothing() {}'
    code = nvrtc.compiled(source, (9, 0), {"A": 1})
    counted: list[object] = []
    monkeypatch.setattr(nvrtc, "compile_source", lambda *given: counted.append(given) or b"new")
    assert nvrtc.compiled(source, (9, 0), {"A": 1}) == code
    assert not counted
    for other in ((source, (8, 0), {"A": 1}), (source, (9, 0), {"A": 2}), (source + " ", (9, 0), {"A": 1})):
        assert nvrtc.compiled(*other) == b"new"  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert nvrtc.compiled(source, (9, 0), {"A": 1}) == b"new"


def test_sources_are_read_whatever_the_locale() -> None:
    """Their comments have more than ASCII."""
    program = f"from fastmerge.kernels.cuda import nvrtc; [nvrtc.source_of(name) for name in {SOURCES}]"
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-P", "-c", program], env=environment, check=True)


def test_what_does_not_compile_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)NVRTC .* refuses -arch=sm_90: .*nonsense"):
        nvrtc.compile_source("nonsense", (9, 0), {})


def test_what_is_compiled_for_is_known_beforehand() -> None:
    """Of every GPU by what NVRTC itself says: those of the cases compile, and what it does not name is refused."""
    for capability in {capability for capability, *_ in CASES}:
        nvrtc.check(capability)
    known = nvrtc.architectures()
    for number in (10, *range(75, known[-1] + 10)):
        capability = divmod(number, 10)
        if number in known:
            nvrtc.check(capability)
            assert nvrtc.compile_source("", capability, {})
            continue
        with pytest.raises(RuntimeError, match=f"does not compile for sm_{number}, "):
            nvrtc.check(capability)
        with pytest.raises(RuntimeError, match=f"refuses -arch=sm_{number}: "):
            nvrtc.compile_source("", capability, {})


def test_an_unknown_gpu_is_told() -> None:
    with pytest.raises(RuntimeError, match="refuses -arch=sm_10: "):
        nvrtc.compile_source("", (1, 0), {})


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets what is launched run as PTX."""
    known, cuts = list[Tensor](), brackets.cuts

    def spied(base: Tensor, slots: list[tuple[Tensor, int]]) -> list[tuple[int, int] | None]:
        known.extend(model for model, _ in slots)
        return cuts(base, slots)

    monkeypatch.setattr(brackets, "cuts", spied)

    def start(capability: int, change: Callable[[str], str] = str) -> None:
        monkeypatch.setattr(nvrtc, "launch", executed.launcher(capability, change, known))

    return start


@pytest.mark.parametrize(
    "capability", [pytest.param(80, marks=pytest.mark.aot), 90, pytest.param(100, marks=pytest.mark.aot)]
)
@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_ptx_equals_the_reference(
    dtypes: tuple[torch.dtype, torch.dtype], capability: int, run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Aligned and not, within its tensors, with barriers wherever warps share memory; with samples and without."""
    run(capability)
    for n in (8, 2049, 20_004):
        base, model = pair(dtypes, n, shift=n % 2)
        assert_same_histograms(base, model)
        for least in (1 << 20, 1) if F64 not in dtypes else (1 << 20,):
            monkeypatch.setattr(brackets, "LEAST", least)
            assert_same_cuts(base, [model, base.roll(1).to(model.dtype)], [n // 10, n - n // 8])
    assert_same_experts(*pair(dtypes, 2049), ranks_of(2049)[1:3])
    for rows, columns, kinds in ((9, 7, ()), (2, 4099, ("near", "far"))):
        base, model = pair(dtypes, rows * columns, shift=rows % 2)
        assert_same_drops(base, model, columns, kinds)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (r"bar\.sync[^;]*;", "", "no barrier since another warp"),
        (r"(ld\.global\.v4[^;]*\[%rd\d+)", r"\1+2", "an odd address"),
        (r"(st\.global\.u16[^;]*\[%rd\d+)", r"\1+4096", "beyond the tensors"),
    ],
)
def test_planted_faults_are_told(old: str, new: str, expected: str, run: Callable[..., None]) -> None:
    base, model = pair((BF16, BF16), 2048)
    run(90)
    assert_same_expert(base, model, (0.5, 0), 2048, BF16)
    run(90, lambda code: re.sub(old, new, code))
    with pytest.raises(ptx.MachineError, match=expected):
        assert_same_expert(base, model, (0.5, 0), 2048, BF16)
