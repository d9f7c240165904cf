"""Switches of tasks on a GPU: made ready once, then nothing but launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
from batches import check_modulation, check_scattering, modulations, scatters
from compiled import Nothing, compiling

from fastmerge import dispatch, ops


def said_to_be_on(gpu: int, x: Any) -> Any:
    """A job with tensors that say of themselves to be on a GPU."""
    if isinstance(x, torch.Tensor):
        return x.as_subclass(type("OnGpu", (torch.Tensor,), {"device": torch.device("cuda", gpu)}))
    if isinstance(x, ops.Expert):
        return ops.Expert(*(said_to_be_on(gpu, part) for part in x))
    return type(x)(said_to_be_on(gpu, part) for part in x) if isinstance(x, (tuple, list)) else x


@pytest.mark.parametrize("old", [set(), {0}, {1}], ids=str)
@pytest.mark.parametrize(
    ("kind", "op", "jobs"), [("modulation", "modulate", modulations), ("scattering", "scatter", scatters)]
)
def test_every_gpu_that_has_tensors_is_looked_at(
    kind: str, op: str, jobs: Callable[[], Any], old: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one of them cannot be used, each tensor is changed on its own, by what its GPU can."""
    asked: list[tuple[str, int | None]] = []
    given = [said_to_be_on(gpu, job) for gpu, job in enumerate(jobs()[:2])]

    def choose(op: str, device: torch.device, _: str | None) -> Callable[..., Any]:
        asked.append((op, device.index))
        return lambda *_: lambda: True

    monkeypatch.setattr(dispatch, "lacking", lambda _, gpu: "it is too old" if gpu in old else None)
    monkeypatch.setattr(dispatch, "choose", choose)
    getattr(ops, kind)(given)()
    assert [name for name, _ in asked] == ([op] * 2 if old else [kind])
    assert not old or [gpu for _, gpu in asked] == [0, 1]


def test_a_switch_only_launches() -> None:
    """Two kinds of tensors, two launches; what a CUDA graph could not capture is not called."""
    with compiling(90) as found:
        switch = ops.modulation(modulations(), backend="cuda")
        switch()
        assert len(found) == 2
        with Nothing():
            switch()


def test_what_allocates_shows() -> None:
    with compiling(90), pytest.raises(AssertionError, match="torch was asked for"), Nothing():
        ops.modulation(modulations(), backend="cuda")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("check", [check_modulation, check_scattering])
def test_it_is_the_op(check: Callable[[str], int], device: str) -> None:
    """Triton's interpreter runs the same for the kernels (interpreted.py)."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")
    assert check(device) > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
def test_a_graph_captures_it() -> None:
    given = modulations("cuda")
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
