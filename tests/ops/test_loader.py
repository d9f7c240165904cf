"""Bytes of files brought in by the native backend's threads: into the host's memory, and to a driver that lags."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import lagging_driver
import pytest
import torch
from lagging_driver import DEVICE, STREAM

from fastmerge import dispatch

native: Any = dispatch.load("native")
pytestmark = pytest.mark.skipif(isinstance(native, str), reason="the native backend is not built")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, bytes]]:
    path, content = tmp_path_factory.mktemp("loader") / "file", os.urandom(1_000_003)
    path.write_bytes(content)
    with path.open("rb", buffering=0) as stream:
        yield stream.fileno(), content


def loaded(file: tuple[int, bytes], device: int, stream: int = 0, staging: int = 9 * 1024) -> None:
    """Many spans of several loads, waited for in another order than they came, have their bytes."""
    descriptor, content = file
    memory = torch.zeros(staging, dtype=torch.uint8)
    loads = [[(0, 1_000_003), (5, 1), (17, 0)], [(999_999, 4)], [], [(i * 997, 2500) for i in range(300)]]
    targets = [[torch.zeros(n, dtype=torch.uint8) for _, n in spans] for spans in loads]
    with closing(native.Loader(memory.data_ptr(), memory.numel(), 3, device, stream)) as loader:
        numbers = [
            loader.begin([(descriptor, at, n, to.data_ptr()) for (at, n), to in zip(spans, own, strict=True)])
            for spans, own in zip(loads, targets, strict=True)
        ]
        for number in (numbers[1], numbers[3], numbers[0], numbers[2]):
            assert loader.wait(number) == (-1, 0)
    for spans, own in zip(loads, targets, strict=True):
        for (at, n), to in zip(spans, own, strict=True):
            assert to.numpy().tobytes() == content[at : at + n]


@pytest.mark.parametrize("staging", [9 * 64, 9 * 1024, 9 << 20])
def test_bytes_arrive(file: tuple[int, bytes], staging: int) -> None:
    loaded(file, -1, staging=staging)


def test_what_cannot_be_read_is_told(file: tuple[int, bytes]) -> None:
    """With the span, and errno or 0 at the file's end; the others of the load and later loads are read."""
    descriptor, content = file
    memory, to = torch.zeros(9 * 64, dtype=torch.uint8), torch.zeros(200, dtype=torch.uint8)
    with closing(native.Loader(memory.data_ptr(), memory.numel(), 3, -1, 0)) as loader:
        beyond = loader.begin(
            [(descriptor, 0, 100, to.data_ptr()), (descriptor, len(content) - 50, 100, to.data_ptr())]
        )
        closed = loader.begin([(10_000, 0, 100, to.data_ptr())])
        whole = loader.begin([(descriptor, 100, 100, to[100:].data_ptr())])
        assert loader.wait(beyond) == (1, 0)
        assert loader.wait(closed) == (0, 9)  # EBADF
        assert loader.wait(whole) == (-1, 0)
        with pytest.raises(ValueError, match="no such load"):
            loader.wait(whole)
    assert to.numpy().tobytes() == content[:200]


def test_closing_drops_what_is_left(file: tuple[int, bytes]) -> None:
    """Who waits is told, and no thread is left."""
    descriptor, _ = file
    memory, to = torch.zeros(3 * 64, dtype=torch.uint8), torch.zeros(1_000_000, dtype=torch.uint8)
    before = threading.active_count(), len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 0
    loader = native.Loader(memory.data_ptr(), memory.numel(), 1, -1, 0)
    number = loader.begin([(descriptor, 0, to.numel(), to.data_ptr())] * 20)
    loader.close()
    with pytest.raises(RuntimeError, match="stopped"):
        loader.wait(number)
    loader.close()
    assert before == (threading.active_count(), len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 0)


def test_too_little_staging_is_refused() -> None:
    memory = torch.zeros(1024, dtype=torch.uint8)
    with pytest.raises(ValueError, match="too little staging"):
        native.Loader(memory.data_ptr(), memory.numel(), 16, -1, 0)


WITHOUT_THREADS = """
import resource
import numpy as np
from fastmerge.kernels.native import Loader
memory = np.zeros(1 << 20, np.uint8)
with open("/proc/self/statm") as used:
    room = int(used.read().split()[0]) * resource.getpagesize() + (30 << 20)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
try:
    Loader(memory.ctypes.data, memory.nbytes, 64, -1, 0)
except RuntimeError as error:
    print("refused:", error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_system_without_threads_is_told(tmp_path: Path) -> None:
    """Those that run end before the error is raised, and the process goes on."""
    command = [sys.executable, "-c", WITHOUT_THREADS]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (ended.returncode, ended.stdout[:8]) == (0, "refused:"), ended.stderr


@pytest.mark.parametrize(
    ("device", "stream", "problem"),
    [
        (DEVICE, STREAM, ""),
        (0, STREAM, "taking the GPU's context: invalid device ordinal"),
        (DEVICE, STREAM + 1, "copying to the GPU: error 201"),
    ],
)
def test_copies_of_a_gpu(file: tuple[int, bytes], driver: Path, device: int, stream: int, problem: str) -> None:
    """Staging memory is read into again only after the copy out of it is done."""
    content = f"open('/proc/self/fd/{file[0]}', 'rb').read()"
    code = f"import test_loader as t; t.loaded(({file[0]}, {content}), {device}, {stream})"
    done = lagging_driver.run(driver, Path(__file__).parent, code, [file[0]])
    assert done.returncode == (1 if problem else 0), done.stderr
    assert done.stderr.strip().endswith(problem)
