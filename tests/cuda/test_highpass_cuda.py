"""Machine code of the kernels beside the GPU's transforms."""

from __future__ import annotations

import pytest
import torch
from tensors import BF16, F32, F64

pytest.importorskip("triton", reason="Triton is not installed")
from compiled import TARGETS, compiling, objections, read
from fastmerge.kernels.cuda import panel
from fastmerge.kernels.cuda.highpass_merge import Stack
from fastmerge.kernels.reference.spectrum import Bins, plan


def filter_rows(bins: Bins, working: torch.dtype) -> None:
    """What a block's spectra go through, without the transforms."""
    spectrum = torch.zeros(bins.h, bins.w // 2 + bins.w % 2, dtype=working.to_complex())
    columns = panel.new_panel(bins, torch.zeros(1, dtype=working), 1)
    panel.transpose(spectrum, columns, 0, bins)
    panel.keep(columns, bins)
    panel.transpose(spectrum, columns, 0, bins, back=True)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("working", [F32, F64], ids=str)
def test_machine_code(working: torch.dtype, target: int) -> None:
    """Transposing, filtering and the last sweep: no spills, whole loads, no fused arithmetic, few registers."""
    v, base = torch.zeros(70_000, dtype=working), torch.zeros(70_000, dtype=BF16)
    kinds = [Bins(40, 2000, "paper", 25), Bins(40, 2001, "paper", 25), Bins(40, 2000, "released", 400)]
    assert [plan(bins).subtract for bins in kinds] == [True, True, False]
    with compiling(target) as found:
        panel.finish_many([(base, v, v, 0.5, torch.empty_like(base))])
        panel.finish_many([(None, None, v, 1.0, torch.empty_like(v))])
        for bins in kinds:
            filter_rows(bins, working)
    assert len(found) == 8  # of two kinds each
    for launched in found.values():
        assert objections(read(launched)) == []


def test_most_launches_compile_nothing() -> None:
    """Shapes, scales and sizes that differ are arguments."""
    with compiling(TARGETS[0]) as found:
        for h, w in ((1, 2000), (40, 2000), (32, 4096), (17, 5004)):
            bins, v = Bins(h, w, "paper", 25), torch.zeros(h * w)
            filter_rows(bins, F32)
            panel.finish_many([(v, v, v, h / 64, torch.empty_like(v))])
    assert len(found) == 4


def test_a_grid_has_room_for_all_matrices() -> None:
    """CUDA has no more than 65 535 programs by its second axis."""
    x = torch.zeros(70_000, 2, 2)
    assert 1 < Stack([(None, [x], [1.0])], "paper", 1).together < 1 << 16
