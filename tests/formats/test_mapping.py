"""Files as memory maps: what is read of them, and which pages are brought in before anybody reads."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastmerge.formats import mapping
from fastmerge.formats.mapping import Inputs, Span, head_start, populate_all
from fastmerge.formats.safetensors import read_header

SIZES = 3 * 4096, 10 * 4096 + 17


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    headers = []
    for i, size in enumerate(SIZES):
        save_file({"x": torch.arange(size).to(torch.uint8)}, tmp_path / f"{i}.safetensors")
        headers.append(read_header(tmp_path / f"{i}.safetensors"))
    return Inputs(headers)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("start", [0, 1, 8, 4099])
def test_a_tensor_is_the_bytes_of_the_file_wherever_it_starts(inputs: Inputs, dtype: torch.dtype, start: int) -> None:
    file = next(iter(inputs.files))
    stop = start + 24
    found = inputs.tensor((file, start, stop), dtype)
    assert found.dtype == dtype
    assert found.numel() == 24 // dtype.itemsize
    assert bytes(found.contiguous().view(torch.uint8).tolist()) == file.read_bytes()[start:stop]


def test_no_bytes_are_an_empty_tensor(inputs: Inputs) -> None:
    file = next(iter(inputs.files))
    assert inputs.tensor((file, 5, 5), torch.float32).numel() == 0


def brought_in(inputs: Inputs, monkeypatch: pytest.MonkeyPatch, available: int | None) -> list[Span]:
    """What a head start that nobody ends brings in."""
    spans: list[Span] = []
    monkeypatch.setattr(inputs, "populate", spans.extend)
    monkeypatch.setattr(mapping, "_available_memory", lambda: available)
    monkeypatch.setattr(mapping, "STEP", 4096)
    populate_all(inputs, threading.Event())
    return spans


def test_a_head_start_brings_in_every_byte_of_all_files_once_and_alike(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = brought_in(inputs, monkeypatch, 1 << 40)
    for file, size in inputs.files.items():
        own = [(a, b) for of, a, b in spans if of == file and a < b]
        assert [a for a, _ in own] == list(range(0, size, 4096))
        assert sum(b - a for a, b in own) == size
    small, large = inputs.files
    assert [of for of, _, _ in spans[:4]] == [small, large, small, large]


@pytest.mark.parametrize("available", [None, 0, 4 * 5 * 4096])
def test_a_head_start_keeps_to_a_fourth_of_the_memory(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch, available: int | None
) -> None:
    spans = brought_in(inputs, monkeypatch, available)
    assert sum(stop - start for _, start, stop in spans) <= (available or 0) // 4


def test_a_head_start_ends_when_it_is_told(inputs: Inputs) -> None:
    with head_start(inputs):
        pass
    assert "fastmerge-head-start" not in {thread.name for thread in threading.enumerate()}
