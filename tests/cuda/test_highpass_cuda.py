"""The GPU's filter, its kernels interpreted and its transforms those of the CPU, against the float64 definition."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensors import BF16, F32, F64

pytest.importorskip("triton", reason="Triton is not installed")
from compiled import TARGETS, compiling, objections, read
from fastmerge.kernels.cuda import highpass_merge


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


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("working", [F32, F64], ids=str)
def test_machine_code(working: torch.dtype, target: int) -> None:
    """The last sweep: no spills, whole loads, no fused arithmetic, few registers."""
    finish_all = sys.modules[highpass_merge.__module__].finish_all  # type: ignore[attr-defined]
    v, base, factor = torch.zeros(70_000, dtype=working), torch.zeros(70_000, dtype=BF16), torch.ones(1, dtype=F64)
    with compiling(target) as found:
        finish_all(base, v, v, factor, True, torch.empty_like(base))
        finish_all(None, None, v, factor, False, torch.empty_like(v))
    assert len(found) == 2
    for kernel in found.values():
        assert objections(read(kernel)) == []
