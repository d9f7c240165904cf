"""The GPU's filter, its kernels interpreted and its transforms those of the CPU, against the float64 definition."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.mark.parametrize("group", ["shapes", "dtypes", "nonfinite", "filter"])
def test_interpreted_filter_is_the_definition(group: str, tmp_path: Path) -> None:
    """In a process of its own: whether Triton interprets is settled when kernels are decorated."""
    script = Path(__file__).with_name("interpreted_highpass.py")
    run = subprocess.run(
        [sys.executable, script, group],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert int(run.stdout.split()[0]) > 0
