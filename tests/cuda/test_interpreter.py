"""The Triton kernels in Triton's interpreter, on the CPU: to the bit the reference's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.mark.parametrize("group", ["small", "mixed", "block"])
@pytest.mark.parametrize("op", ["elect", "modulate"])
def test_interpreted_op_equals_the_reference(op: str, group: str, tmp_path: Path) -> None:
    """In a process of its own: whether Triton interprets is settled when kernels are decorated."""
    script = Path(__file__).with_name("interpreted.py")
    run = subprocess.run(
        [sys.executable, script, op, group],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert int(run.stdout.split()[0]) > 0
