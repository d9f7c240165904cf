"""The Triton kernels in Triton's interpreter, on the CPU: to the bit the reference's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
from compiled import OPS
from filters import GROUPS

HERE = Path(__file__).parent


def process(folder: Path, *program: str | Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: whether Triton interprets is settled when kernels are decorated."""
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *program], env=env, cwd=folder, capture_output=True, text=True, check=False)


def interpreted(script: str, argument: str, folder: Path) -> str:
    """What a script prints."""
    run = process(folder, HERE / script, argument)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


@pytest.mark.parametrize("op", OPS)
def test_interpreted_op_equals_the_reference(op: str, tmp_path: Path) -> None:
    assert interpreted("interpreted.py", op, tmp_path).startswith(f"{op}: ")


# What a module of kernels calls, and what it is told instead.
FAULTS = {
    "bits": ("unpack_bits", "unpack_bits", "load_bits", "lambda *given: 1 - right(*given)"),
    "last-element": ("delta_sum", "combine", "store", "lambda to, at, x, n, full: right(to, at, x, n - 1, full)"),
    "sums": ("moments", "moments", "put_sum", "lambda slot, terms: right(slot, terms + terms)"),
    "last-bit": ("balance", "balance", "divide", "lambda a, b, working: a * right(b / b, b, working)"),
    "filter": ("shapes", "panel", "load", "lambda *given: -right(*given)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_told(fault: str, tmp_path: Path) -> None:
    """By the process that compares, whose status says so."""
    op, module, name, wrong = FAULTS[fault]
    program = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import interpreted
module = sys.modules["fastmerge.kernels.cuda.{module}"]
right = module.{name}
module.{name} = {wrong}
interpreted.main([{op!r}])
"""
    run = process(tmp_path, "-c", program)
    assert run.returncode, "nothing was told"
    assert "AssertionError" in run.stderr, run.stderr[-3000:]
    assert not run.stdout


@pytest.mark.parametrize("group", GROUPS)
def test_interpreted_filter_is_the_definition(group: str, tmp_path: Path) -> None:
    """Its transforms are those of the CPU."""
    assert interpreted("interpreted.py", group, tmp_path).startswith(f"{group}: ")


def test_what_a_gpu_will_run_runs(tmp_path: Path) -> None:
    """The programs of bench/gpu, but for the card: time on one is too dear for misprints."""
    assert interpreted("rehearsed.py", str(tmp_path), tmp_path).endswith("tune: done\n")


def test_merges_by_interpreted_kernels(tmp_path: Path) -> None:
    """The bytes of the CPU, small tensors in one launch."""
    assert interpreted("merged.py", str(tmp_path), tmp_path).count("the bytes of the CPU") == 5
