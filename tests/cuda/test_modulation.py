"""Switches of tasks on a GPU: made ready once, then nothing but launches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensors import BF16, F32, make
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton is not installed")
from batches import check_scattering, scatters
from compiled import compiling

from fastmerge import ops

Job = tuple[torch.Tensor, torch.Tensor, torch.Tensor, float, torch.Tensor]


class Nothing(TorchDispatchMode):
    """Lets torch look at parts of tensors, but neither allocate, nor copy, nor wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.is_view:
            return func(*args, **(kwargs or {}))
        raise AssertionError(f"torch was asked for {func}")


def jobs(device: str = "cpu") -> list[Job]:
    found = []
    for i, (n, dtype) in enumerate([(5000, BF16), (70_000, BF16), (1, BF16), (3001, F32)]):
        base, unified = (make(n, dtype, seed=i + j, special=False).to(device) for j in (0, 10))
        mask = ops.pack_bits(unified > 0)
        found.append((base, unified, mask, 0.5 + i, torch.empty_like(base)))
    return found


def test_a_switch_only_launches() -> None:
    """Two kinds of tensors, two launches; what a CUDA graph could not capture is not called."""
    with compiling(90) as found:
        switch = ops.modulation(jobs(), backend="cuda")
        switch()
        assert len(found) == 2
        with Nothing():
            switch()


def test_what_allocates_shows() -> None:
    with compiling(90), pytest.raises(AssertionError, match="torch was asked for"), Nothing():
        ops.modulation(jobs(), backend="cuda")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_it_is_modulate(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")
    given = jobs(device)
    ops.modulation(given)()
    for base, unified, mask, scale, out in given:
        assert torch.equal(out, ops.modulate(base, unified, mask, scale, backend="reference"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
def test_a_graph_captures_it() -> None:
    given = jobs("cuda")
    switch = ops.modulation(given)
    switch()
    expected = [out.clone() for *_, out in given]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        switch()
    for *_, out in given:
        out.fill_(torch.nan)
    graph.replay()
    assert all(torch.equal(out, own) for (*_, out), own in zip(given, expected, strict=True))


def test_a_switch_of_experts_only_launches() -> None:
    with compiling(90) as found:
        switch = ops.scattering(scatters(), backend="cuda")
        switch()
        assert found
        with Nothing():
            switch()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_it_is_scatter(device: str) -> None:
    """Triton's interpreter runs the same for the kernels (interpreted.py)."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")
    assert check_scattering(device) > 0
