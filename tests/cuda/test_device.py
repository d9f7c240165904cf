"""The same cases on a GPU, and more elements than 32 bits can count."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")


def cases() -> object:
    spec = importlib.util.spec_from_file_location("interpreted", Path(__file__).with_name("interpreted.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("group", ["small", "mixed", "block"])
@pytest.mark.parametrize("op", ["elect", "modulate"])
def test_op_equals_the_reference(op: str, group: str) -> None:
    assert cases().main(op, group, "cuda") > 0  # type: ignore[attr-defined]


@pytest.mark.slow
def test_more_than_32_bits_of_elements() -> None:
    """The last elements of 2^31 + 3 are elected like any other."""
    from fastmerge import ops

    n = 2**31 + 3
    if torch.cuda.mem_get_info()[0] < 9 * n:
        pytest.skip("needs 20 GB of GPU memory")
    base = torch.zeros(n, dtype=torch.bfloat16, device="cuda")
    models = [torch.full_like(base, x) for x in (1.0, -0.5)]
    elected = ops.elect(base, models, backend="cuda")
    assert elected.unified[-5:].eq(1).all()
    assert elected.magnitude.tolist() == [n, n / 2]
