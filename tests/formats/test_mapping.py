"""Files as memory maps: what is read of them, and which pages are brought in before anybody reads."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastmerge import dispatch
from fastmerge.errors import InputError, MergeError, ResumableError
from fastmerge.formats import mapping
from fastmerge.formats.mapping import Inputs, Little, ReadAhead, Span, head_start, populate_all
from fastmerge.formats.safetensors import Header, read_header

SIZES = 3 * 4096, 10 * 4096 + 17


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    headers = []
    for i, size in enumerate(SIZES):
        save_file({"x": torch.arange(size).to(torch.uint8)}, tmp_path / f"{i}.safetensors")
        headers.append(read_header(tmp_path / f"{i}.safetensors"))
    return Inputs(headers, resumable=True)


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


def cut(inputs: Inputs, keep: int = 4096) -> Path:
    """Cuts the longer file short, behind the back of what has mapped it."""
    file = list(inputs.files)[1]
    os.truncate(file, keep)
    return file


@pytest.mark.skipif(sys.platform != "linux", reason="other systems bring in no pages")
def test_bytes_that_are_gone_are_an_error(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the end of the process; they are not taken for mapped either."""
    file = cut(inputs)
    with pytest.raises(MergeError, match=rf"{file}: has changed"):
        inputs.populate([(file, 8192, 12_000)])
    monkeypatch.setattr(inputs, "_check_files", lambda: None)  # as where a disk fails
    for _ in range(2):
        with pytest.raises(ResumableError, match=rf"{file}: bytes 8192 to 12000 cannot be read.*--resume"):
            inputs.populate([(file, 8192, 12_000)])
    inputs.populate([(file, 0, 4096)])
    inputs.resumable = False
    with pytest.raises(MergeError, match="cannot be read; mend the disk or its network, and start again") as caught:
        inputs.populate([(file, 8192, 12_000)])
    assert not isinstance(caught.value, ResumableError)


@pytest.mark.skipif(sys.platform != "linux", reason="signals differ")
def test_bytes_that_go_once_they_are_mapped(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read in their place is zeros, and `check_read` says so; other signals of that kind stay what they are."""
    if isinstance(dispatch.load("native"), str):
        pytest.skip("the native backend is not there")
    file = list(inputs.files)[1]
    whole = inputs.tensor((file, 0, inputs.files[file]), torch.uint8)
    inputs.check_read()
    cut(inputs)
    assert int(whole[8192:].sum()) == 0
    assert whole[:4096].any()
    with pytest.raises(MergeError, match=rf"{file}: has changed"):
        inputs.check_read()
    monkeypatch.setattr(inputs, "_check_files", lambda: None)  # as where a disk fails
    with pytest.raises(ResumableError, match=rf"{file}: bytes \d+ to \d+ cannot be read.*--resume"):
        inputs.check_unchanged()


UNGUARDED = """
import mmap, os, sys, tempfile, torch
from pathlib import Path
from fastmerge.formats.mapping import Inputs
from fastmerge.formats.safetensors import read_header
header = read_header(Path(sys.argv[1]))
inputs = Inputs([header])
inputs.tensor((header.file, 0, header.size), torch.uint8)
with tempfile.TemporaryFile() as file:
    file.truncate(8192)
    other = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    file.truncate(0)
    if sys.argv[2] == "gone":
        del inputs
    other[5000]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="signals differ")
@pytest.mark.parametrize("guard", ["there", "gone"])
def test_maps_of_others_are_not_guarded(guard: str, inputs: Inputs, tmp_path: Path) -> None:
    file = next(iter(inputs.files))
    done = subprocess.run([sys.executable, "-c", UNGUARDED, str(file), guard], cwd=tmp_path, check=False)
    assert done.returncode == -signal.SIGBUS


def test_bytes_are_copied_past_the_map(inputs: Inputs) -> None:
    file = list(inputs.files)[1]
    memory = bytearray(9000)
    inputs.copy((file, 4099, 13_099), memoryview(memory))
    assert memory == file.read_bytes()[4099:13_099]
    inputs.copy((file, 7, 7), memoryview(b""))


def test_what_cannot_be_copied_is_an_error(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    file, memory = cut(inputs), memoryview(bytearray(3808))
    with pytest.raises(MergeError, match=rf"{file}: has changed"):
        inputs.copy((file, 8192, 12_000), memory)
    monkeypatch.setattr(inputs, "_check_files", lambda: None)  # as where a disk fails
    with pytest.raises(ResumableError, match=rf"{file}: bytes 8192 to 12000 cannot be read; .*--resume"):
        inputs.copy((file, 8192, 12_000), memory)
    monkeypatch.setattr(os, "preadv", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(ResumableError, match=r"cannot be read \(Input/output error\)"):
        inputs.copy((file, 0, 3808), memory)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems bring in no pages")
@pytest.mark.parametrize("reading", [Little, ReadAhead])
def test_whoever_waits_for_bytes_that_are_gone_is_told(inputs: Inputs, reading: type[Little] | type[ReadAhead]) -> None:
    file = cut(inputs)
    with head_start(inputs):
        time.sleep(0.01)  # which says nothing of what nobody asked for
    chunks = [([(file, 0, 4096)], True), ([(file, 8192, 12_000)], True)]
    with reading(inputs, chunks) as ahead:
        ahead.wait()
        ahead.done()
        with pytest.raises(MergeError, match="has changed"):
            ahead.wait()


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


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """Eight more files may be open, until someone allows more."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + 8, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def many(folder: Path) -> list[Header]:
    for i in range(40):
        save_file({f"x{i}": torch.arange(9)}, folder / f"{i}.safetensors")
    return [read_header(folder / f"{i}.safetensors") for i in range(40)]


@pytest.mark.usefixtures("few_descriptors")
def test_as_many_files_as_the_system_lets_be_open(tmp_path: Path) -> None:
    """Mapped and read without their maps."""
    inputs = Inputs(many(tmp_path))
    assert len({inputs.descriptor(file) for file in inputs.files}) == 40


def test_more_files_than_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """One clear line, of maps and of reading without."""
    headers = many(tmp_path)
    inputs = Inputs(headers, resumable=True)
    request.getfixturevalue("few_descriptors")
    monkeypatch.setattr(mapping, "_let_open", lambda _: None)
    with pytest.raises(InputError, match=r"\.safetensors: cannot be opened beside 39 others.*ulimit -n"):
        Inputs(headers)
    with pytest.raises(ResumableError, match=r"ulimit -n\).*--resume"):
        [inputs.descriptor(file) for file in inputs.files]
