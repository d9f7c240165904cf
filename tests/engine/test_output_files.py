"""Output files have the bytes that were written at each place, on disks and in memory; a full one is told."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import random
from pathlib import Path

import pytest
from folders import content, near, state, write

import fastmerge as fm
from fastmerge.engine import output_files
from fastmerge.engine.output_files import PAGE, OutputFiles
from fastmerge.errors import ResumableError
from fastmerge.formats.layout import FilePlan


@pytest.fixture(params=["disk", "memory"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder like any other can be treated as one in memory."""
    monkeypatch.setattr(output_files, "in_memory", lambda _: request.param == "memory")
    monkeypatch.setattr(output_files, "COPIERS", 4)
    monkeypatch.setattr(output_files, "PART", 10_000)
    monkeypatch.setattr(output_files, "STEP", 150_000)
    return str(request.param)


@pytest.mark.usefixtures("kind")
def test_bytes_lie_where_they_were_written(tmp_path: Path) -> None:
    """Pieces of any length in any order, from memory that lies like the file and from memory that does not."""
    random.seed(0)
    header, size = b"header" * 100, 600 + 400_000
    expected = header + random.randbytes(size - len(header))
    memory = mmap.mmap(-1, size + 2 * PAGE)
    files = OutputFiles(tmp_path)
    for name in ("a", "b/c"):
        files.open(FilePlan(name, size, header))
        cuts = sorted({len(header), size, *(random.randrange(len(header), size) for _ in range(12))})
        pieces = list(itertools.pairwise(cuts))
        random.shuffle(pieces)
        for i, (start, stop) in enumerate(pieces):
            phase = start % PAGE if i % 3 else 7
            memory[phase : phase + stop - start] = expected[start:stop]
            files[name].write(memoryview(memory)[phase : phase + stop - start], start, phase)
        files[name].sync()
    files.close()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b/c").read_bytes() == expected


def test_a_merge_has_the_same_bytes(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = state(0, shapes={"up.weight": (300, 700), "norm.weight": (33,)})
    models = {f"m{k}": write(tmp_path / f"m{k}", near(base, k + 1)) for k in range(2)}
    root = write(tmp_path / "base", base)
    fm.merge("emr", root, models, tmp_path / "out", device="cpu")
    monkeypatch.setattr(output_files, "in_memory", lambda _: False)
    fm.merge("emr", root, models, tmp_path / "other" / "out", device="cpu")
    assert content(tmp_path / "out") == content(tmp_path / "other" / "out"), kind


@pytest.mark.usefixtures("kind")
def test_no_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it shows, and nothing is left; the merge can be gone on with."""
    base = state(0, shapes={"up.weight": (300, 700)})
    root, model = write(tmp_path / "base", base), write(tmp_path / "m", near(base, 1))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(ResumableError, match="the disk is full"):
            fm.merge("linear", None, {"m": model}, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
    fm.merge("task_arithmetic", root, {"m": model}, tmp_path / "out", device="cpu")


def test_the_file_system_in_memory_is_known(tmp_path: Path) -> None:
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in ("/dev/shm", "/proc"):
        kinds = [kind for mount, kind in mounts if mount == place]
        if kinds:
            assert output_files.in_memory(Path(place)) == (kinds[-1] == "tmpfs")
    assert not output_files.in_memory(tmp_path / "nowhere")
