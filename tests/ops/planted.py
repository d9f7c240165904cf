"""Faults planted through the addresses that the native backend takes: the proof that `make sanitize` can fail.

Only `make sanitize` runs this, whose extension is instrumented.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PRELUDE = """
import threading, torch
from fastmerge.kernels.native import _native, delta_sum
"""
READ_PAST_THE_END = """
mask, packed = torch.zeros(64, dtype=torch.bool), torch.zeros(16, dtype=torch.uint8)
_native.pack_bits(72, mask.data_ptr(), packed.data_ptr())
"""
WRITE_PAST_THE_END = """
mask, packed = torch.zeros(72, dtype=torch.bool), torch.zeros(8, dtype=torch.uint8)
_native.pack_bits(72, mask.data_ptr(), packed.data_ptr())
"""
MISALIGNED_SUMS = """
x, sums = torch.zeros(64), torch.zeros(4, dtype=torch.float64)
_native.inner_products(64, x.data_ptr(), 2, [x.data_ptr()], [2], sums.data_ptr() + 4)
"""
TWO_CALLS_WRITE_ONE_OUTPUT = """
x, out = torch.ones(200_000), torch.zeros(200_000)
calls = lambda: [delta_sum(x, [x], [1.0], out) for _ in range(200)]
threads = [threading.Thread(target=calls) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@pytest.mark.parametrize(
    ("fault", "report"),
    [
        pytest.param(READ_PAST_THE_END, "heap-buffer-overflow", id="address-read"),
        pytest.param(WRITE_PAST_THE_END, "heap-buffer-overflow", id="address-write"),
        pytest.param(MISALIGNED_SUMS, "misaligned address", id="address-undefined"),
        pytest.param(TWO_CALLS_WRITE_ONE_OUTPUT, "data race", id="thread-race"),
    ],
)
def test_planted_fault_is_reported(fault: str, report: str, tmp_path: Path) -> None:
    program = [sys.executable, "-c", PRELUDE + fault]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode, "nothing was reported"
    assert report in done.stderr, done.stderr
    assert "kernels/native" in done.stderr, done.stderr
