"""Input files as memory maps: tensors without a copy, pages brought in ahead of their use and let go after it."""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import MergeError
from .safetensors import Header, TensorInfo

TORCH_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}
INTEGER_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
POPULATE_READ, DONTNEED = 22, 4  # madvise(2) on Linux
AHEAD = 4  # chunks
LITTLE = 4 << 20  # bytes

Span = tuple[Path, int, int]  # bytes of a file


class Inputs:
    """Read-only maps of files, which must be the ones whose headers were read."""

    def __init__(self, headers: Iterable[Header]) -> None:
        self._headers = {header.file: header for header in headers}
        self._maps: dict[Path, mmap.mmap] = {}
        self._addresses: dict[Path, int] = {}
        self._present: dict[Path, np.ndarray[Any, np.dtype[np.bool_]]] = {}  # which pages are mapped
        self._madvise = None
        if sys.platform == "linux":
            self._madvise = ctypes.CDLL(None, use_errno=True).madvise  # releases the GIL, which mmap.madvise does not
            self._madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for file in self._headers:
            with file.open("rb") as stream:
                self._maps[file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self._addresses[file] = self.tensor((file, 0, 1), torch.uint8).data_ptr()
            self._present[file] = np.zeros(-(-len(self._maps[file]) // mmap.PAGESIZE), np.bool_)
        self.check_unchanged()

    def check_unchanged(self) -> None:
        """Raise a MergeError if a file was written to since its header was read. One that was removed stays mapped."""
        for file, header in self._headers.items():
            try:
                status = file.stat()
            except FileNotFoundError:
                continue
            if (status.st_size, status.st_mtime_ns) != (header.size, header.modified):
                raise MergeError(f"{file}: has changed since its header was read; start again")

    def tensor(self, span: Span, dtype: torch.dtype) -> Tensor:
        """A 1-D tensor over bytes of a file, which may be misaligned for its dtype."""
        file, start, stop = span
        if start == stop:
            return torch.empty(0, dtype=dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            return torch.frombuffer(self._maps[file], dtype=dtype, count=(stop - start) // dtype.itemsize, offset=start)

    def whole(self, info: TensorInfo) -> Tensor:
        """A stored tensor in its shape."""
        dtype = (TORCH_DTYPES | INTEGER_DTYPES)[info.dtype]
        return self.tensor((info.file, info.start, info.stop), dtype).view(info.shape)

    @property
    def roomy(self) -> bool:
        """Whether all files fit into memory together, so that their pages may stay mapped."""
        available = _available_memory()
        return available is not None and 2 * sum(header.size for header in self._headers.values()) <= available

    def populate(self, spans: Iterable[Span]) -> None:
        """Map the pages of bytes about to be read; a hint, so failures are left to the reading itself."""
        self._advise(spans, POPULATE_READ)

    def release(self, spans: Iterable[Span]) -> None:
        """Unmap the pages of bytes that were read; they stay in the page cache."""
        self._advise(spans, DONTNEED)

    def _advise(self, spans: Iterable[Span], advice: int) -> None:
        if self._madvise is None:
            return
        for file, start, stop in spans:
            first = start - start % mmap.PAGESIZE
            pages = self._present[file][first // mmap.PAGESIZE : -(-stop // mmap.PAGESIZE)]
            if stop > first and not (advice == POPULATE_READ and pages.all()):
                pages[:] = advice == POPULATE_READ
                self._madvise(self._addresses[file] + first, stop - first, advice)


def _available_memory() -> int | None:
    """Bytes that the system can give without swapping, page cache and all; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


class Little:
    """In the place of ReadAhead where there is so little to read that handing it over would take longer."""

    def __enter__(self) -> Little:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self) -> None:
        """Pages come as they are read."""

    def done(self) -> None:
        """They stay until the map goes."""


class ReadAhead:
    """A thread that populates the spans of chunks in order, at most AHEAD before the one in use.

    Chunks come with whether their pages are of no more use once they are behind.
    """

    def __init__(self, inputs: Inputs, chunks: Sequence[tuple[Sequence[Span], bool]]) -> None:
        self._inputs = inputs
        self._chunks = chunks
        self._room = threading.Semaphore(AHEAD)
        self._ready = threading.Semaphore(0)
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="fastmerge-read-ahead", daemon=True)

    def __enter__(self) -> ReadAhead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._room.release()
        self._thread.join()

    def wait(self) -> None:
        """Until the next chunk's pages are there."""
        self._ready.acquire()

    def done(self) -> None:
        """The chunk waited for has been used."""
        self._room.release()

    def _run(self) -> None:
        mapped: deque[Sequence[Span]] = deque()
        for spans, release in self._chunks:
            self._room.acquire()
            if self._stop:
                return
            if len(mapped) == AHEAD:
                self._inputs.release(mapped.popleft())
            self._inputs.populate(spans)
            mapped.append(spans if release else ())
            self._ready.release()
