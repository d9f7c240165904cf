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


def interpreted(script: str, argument: str, folder: Path) -> str:
    """What a script prints in a process of its own: whether Triton interprets is settled when kernels are decorated."""
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name(script), argument],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


@pytest.mark.parametrize("op", OPS)
def test_interpreted_op_equals_the_reference(op: str, tmp_path: Path) -> None:
    assert interpreted("interpreted.py", op, tmp_path).startswith(f"{op}: ")


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
