"""The Triton kernels in Triton's interpreter, on the CPU: to the bit the reference's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
from compiled import OPS


@pytest.mark.parametrize("op", OPS)
def test_interpreted_op_equals_the_reference(op: str, tmp_path: Path) -> None:
    """In a process of its own: whether Triton interprets is settled when kernels are decorated."""
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("interpreted.py"), op],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.startswith(f"{op}: "), run.stdout
