"""Checkpoints that several files merge, and what tests of stopped merges share."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from folders import family
from piped import checkpoints_in

from fastmerge.engine import memory_file, writer

SHAPES = {f"layers.{i}.weight": (257, 300) for i in range(16)} | {"norm.weight": (5,), "empty": (0, 4)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    return family(tmp_path_factory.mktemp("models"), 2, shapes=SHAPES)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    return checkpoints_in(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def journal_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SYNC_SECONDS", 0)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder whose files are memory."""
    place = Path("/dev/shm")
    if not place.is_dir() or not memory_file.is_memory(place):
        pytest.skip("no file system of memory here")
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)
