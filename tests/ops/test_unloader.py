"""Bytes of a device written to files by the native backend: from the host's memory, and from a driver that lags."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import lagging_driver
import numpy as np
import pytest
import torch
from lagging_driver import DEVICE, STREAM

from fastmerge import dispatch
from fastmerge.engine.memory_file import MemoryFile
from fastmerge.engine.slots import PAGE, Extent, cut, write_host

native: Any = dispatch.load("native")
pytestmark = pytest.mark.skipif(isinstance(native, str), reason="the native backend is not built")
SIZE, THREADS = 1_500_000, 3
LEAST = 2 * THREADS * PAGE  # bytes of staging memory


def staging(nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Page-aligned memory."""
    return np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)


class Files(NamedTuple):
    """What a file is written by: through the page cache, past it where that can be, and a map."""

    cached: int
    direct: int
    map: int


def extents_of(files: Files, at: int) -> list[Extent]:
    """All bytes of a file in pieces, some of them empty, by all ways, from pages in another order than the file's."""
    choice, found, offset, start = random.Random(3), list[Extent](), 0, 2 * SIZE
    while offset < SIZE:
        nbytes = min(SIZE - offset, choice.choice([0, 1, 100, PAGE, 5 * PAGE + 7, 40 * PAGE, 99_991]))
        start -= nbytes + choice.randrange(9)
        first = -offset % PAGE
        last = first + (nbytes - first) // PAGE * PAGE
        kind = choice.choice(["cached", "direct", "map"])
        ways = {
            "cached": Extent(at + start, nbytes, offset, files.cached),
            "direct": Extent(at + start, nbytes, offset, files.cached, files.direct, first, last),
            "map": Extent(at + start, nbytes, offset, -1, map=files.map + offset),
        }
        found.append(ways[kind] if kind != "direct" or (files.direct >= 0 and last > first) else ways["cached"])
        offset += nbytes
    return found


def written(path: Path, device: int, stream: int = 0, memory: int = LEAST, threads: int = THREADS) -> None:
    """What several threads have written of extents that they share is what lies in the device's memory."""
    content = np.frombuffer(np.random.default_rng(1).bytes(2 * SIZE), np.uint8)
    stage = staging(memory)
    unloader = native.Unloader(stage.ctypes.data, memory, THREADS, device, stream)
    path.write_bytes(bytes(SIZE))
    cached, direct = os.open(path, os.O_RDWR), -1
    with suppress(AttributeError, OSError):  # where there is no such flag
        direct = os.open(path, os.O_WRONLY | os.O_DIRECT)
    own = MemoryFile(cached, SIZE)
    extents = extents_of(Files(cached, direct, own.address), content.ctypes.data)
    with ThreadPoolExecutor(threads) as pool:
        assert not any(pool.map(unloader.write, [extents[i::7] for i in range(7)]))
    own.close()
    found = path.read_bytes()
    for extent in extents:
        start = extent.start - content.ctypes.data
        assert found[extent.offset :][: extent.nbytes] == content[start:][: extent.nbytes].tobytes()
    for descriptor in {cached, direct} - {-1}:
        os.close(descriptor)


@pytest.mark.parametrize("memory", [LEAST, 3 * LEAST - 1, 64 * LEAST])
@pytest.mark.parametrize("threads", [1, THREADS, 2 * THREADS])
def test_bytes_arrive(memory: int, threads: int, tmp_path: Path) -> None:
    """Also where more threads write than have staging memory: they wait for each other."""
    written(tmp_path / "file", -1, memory=memory, threads=threads)


@pytest.mark.parametrize(
    ("device", "stream", "problem"),
    [
        (DEVICE, STREAM, ""),
        (0, STREAM, "taking the GPU's context: invalid device ordinal"),
        (DEVICE, STREAM + 1, "copying from the GPU: error 201"),
    ],
)
def test_copies_of_a_gpu(driver: Path, tmp_path: Path, device: int, stream: int, problem: str) -> None:
    """Nothing is written before its copy is done, and no copy comes to memory that is being written."""
    code = (
        f"import pathlib, test_unloader as t; t.written(pathlib.Path({str(tmp_path / 'file')!r}), {device}, {stream})"
    )
    done = lagging_driver.run(driver, Path(__file__).parent, code, [])
    assert done.returncode == (1 if problem else 0), done.stderr
    assert done.stderr.strip().endswith(problem)


def refused(path: Path) -> None:
    """After a file that could not be written nothing comes to staging memory any more."""
    content, stage = np.ones(20 * PAGE, np.uint8), staging(LEAST)
    unloader = native.Unloader(stage.ctypes.data, LEAST, THREADS, DEVICE, STREAM)
    whole = Extent(content.ctypes.data, len(content), 0, 10_000)
    assert unloader.write([whole]) == 9
    stage[:] = 7
    with path.open("wb") as stream:
        assert unloader.write([whole._replace(nbytes=1, cached=stream.fileno())]) == 0
    assert sorted(stage.tolist())[:2] == [1, 7]


def test_nothing_comes_after_an_error(driver: Path, tmp_path: Path) -> None:
    code = f"import pathlib, test_unloader as t; t.refused(pathlib.Path({str(tmp_path / 'file')!r}))"
    done = lagging_driver.run(driver, Path(__file__).parent, code, [])
    assert done.returncode == 0, done.stderr


def test_whole_pages_go_by_a_descriptor_of_their_own(tmp_path: Path) -> None:
    """Wherever parts end: here it is another file's."""
    content, stage = np.arange(30 * PAGE, dtype=np.uint32).astype(np.uint8) | 1, staging(LEAST)
    unloader = native.Unloader(stage.ctypes.data, LEAST, THREADS, -1, 0)
    first, last = 3 * PAGE - 50, 21 * PAGE - 50
    with (tmp_path / "ends").open("wb") as ends, (tmp_path / "pages").open("wb") as pages:
        extent = Extent(content.ctypes.data, len(content), 50, ends.fileno(), pages.fileno(), first, last)
        assert unloader.write([extent]) == 0
    own = np.concatenate([np.zeros(50, np.uint8), content])
    by_ends, by_pages = own.copy(), own[: last + 50].copy()
    by_ends[first + 50 : last + 50] = by_pages[: first + 50] = 0
    assert (tmp_path / "ends").read_bytes() == by_ends.tobytes()
    assert (tmp_path / "pages").read_bytes() == by_pages.tobytes()


@pytest.mark.parametrize("by_native", [True, False], ids=["native", "host"])
def test_what_may_not_be_written_directly_goes_through_the_cache(by_native: bool, tmp_path: Path) -> None:
    """As of a file system that wants other alignment: here 50 bytes behind a page."""
    stage, content, file = staging(LEAST), staging(9 * PAGE), tmp_path / "file"
    content[:] = np.arange(9 * PAGE).astype(np.uint8)
    file.touch()
    direct = -1
    with suppress(AttributeError, OSError):
        direct = os.open(file, os.O_WRONLY | os.O_DIRECT)
    if direct < 0:
        pytest.skip("no O_DIRECT here")
    with file.open("wb") as cached, os.fdopen(direct, "wb", buffering=0):
        with pytest.raises(OSError, match="Invalid argument"):
            os.pwrite(direct, content.data[:PAGE], 50 + PAGE)
        extent = Extent(content.ctypes.data, 9 * PAGE, 50, cached.fileno(), direct, PAGE, 8 * PAGE)
        if by_native:
            assert native.Unloader(stage.ctypes.data, LEAST, THREADS, -1, 0).write([extent]) == 0
        else:
            assert write_host(torch.from_numpy(content), [extent._replace(start=0)])
    assert file.read_bytes() == bytes(50) + content.tobytes()


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    """By errno, or -1 where a map has no pages; its staging memory goes on to be used."""
    content, stage = np.ones(9 * PAGE, np.uint8), staging(LEAST)
    unloader = native.Unloader(stage.ctypes.data, LEAST, 1, -1, 0)
    whole = Extent(content.ctypes.data, len(content), 0, -1)
    with (tmp_path / "file").open("wb") as stream:
        assert unloader.write([whole._replace(cached=stream.fileno()), whole._replace(cached=10_000)]) == 9  # EBADF
        assert unloader.write([whole._replace(map=PAGE)]) == -1
        assert unloader.write([whole._replace(cached=stream.fileno(), offset=5)]) == 0
    assert (tmp_path / "file").read_bytes() == b"\1" * (9 * PAGE + 5)


def test_too_little_staging_is_refused() -> None:
    stage = staging(LEAST)
    with pytest.raises(ValueError, match="too little staging"):
        native.Unloader(stage.ctypes.data, LEAST - 1, THREADS, -1, 0)


@pytest.mark.parametrize("cuts", [[], [1], [100, 4_096, 9_000], [4_095, 4_097, 20_000]])
def test_parts_of_an_extent_go_where_it_goes(cuts: Sequence[int]) -> None:
    """Each byte from the same place, to the same place, by the same way."""

    def bytes_of(extent: Extent) -> list[tuple[int, int, int, int]]:
        e = extent
        ways = [e.direct if e.first <= i < e.last else e.cached for i in range(e.nbytes)]
        return [(e.start + i, e.offset + i, way, e.map and e.map + i) for i, way in enumerate(ways)]

    for place in (0, 1 << 30):
        extent = Extent(17, 5 * PAGE, 96, 4, 5, PAGE - 96, 4 * PAGE - 96, place)
        ends = [0, *cuts, extent.nbytes]
        parts = [cut(extent, a, b) for a, b in pairwise(ends)]
        assert [own for part in parts for own in bytes_of(part)] == bytes_of(extent)
