"""Input files as memory maps: tensors without a copy, pages brought in ahead of their use and let go after it.

Torch is imported where a tensor is asked for, so that pages can be brought in while it is loading.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import numpy as np

from .. import dispatch
from ..errors import InputError, MergeError, ResumableError
from .safetensors import Header, TensorInfo

if TYPE_CHECKING:
    import torch
    from torch import Tensor

POPULATE_READ, DONTNEED = 22, 4  # madvise(2) on Linux
AHEAD = 4  # chunks
LITTLE = 4 << 20  # bytes
STEP = 64 << 20  # bytes of a file at a time, while nobody says which are needed first
DESCRIPTORS = 4  # that a file may take: its map's, one to read it without, and both again in another pass
OTHERS = 256  # descriptors that everything else may take

Span = tuple[Path, int, int]  # bytes of a file
Chunk = tuple[Sequence[Span], bool]  # and whether its pages are of no more use once it is behind


class Inputs:
    """Read-only maps of files, which must be the ones whose headers were read.

    `resumable`: what reads them can go on where it was stopped.
    """

    def __init__(self, headers: Iterable[Header], *, resumable: bool = False) -> None:
        self.resumable = resumable
        self._headers = {header.file: header for header in headers}
        self._maps: dict[Path, mmap.mmap] = {}
        self._streams: dict[Path, BinaryIO] = {}  # of files that are read without their maps
        self._opening = threading.Lock()
        self._bytes: dict[Path, Tensor] = {}  # all of a file that was asked for
        self._addresses: dict[Path, int] = {}
        self._present: dict[Path, np.ndarray[Any, np.dtype[np.bool_]]] = {}  # which pages are mapped
        self._guards: dict[Path, int] = {}  # 0 where there is none
        self._madvise = None
        if sys.platform == "linux":
            self._madvise = ctypes.CDLL(None, use_errno=True).madvise  # releases the GIL, which mmap.madvise does not
            self._madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        _let_open(DESCRIPTORS * len(self._headers) + OTHERS)
        for file in self._headers:
            try:
                with file.open("rb") as stream:
                    self._maps[file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                self._maps.clear()
                raise InputError(f"{file}: {self._unopened(error)}") from None
            self._addresses[file] = np.frombuffer(self._maps[file], np.uint8).ctypes.data
            self._present[file] = np.zeros(-(-len(self._maps[file]) // mmap.PAGESIZE), np.bool_)
        self.check_unchanged()

    def check_read(self) -> None:
        """Raise a MergeError if what was read of a map was not there, as where its file was cut off meanwhile."""
        for file, guard in list(self._guards.items()):  # which grows as other threads read
            if guard and (at := _native().lost(guard)) >= 0:
                self.fail((file, at, min(at + mmap.PAGESIZE, self._headers[file].size)))

    def check_unchanged(self) -> None:
        """Raise a MergeError if a file was written to since its header was read, or could not be read. One that was
        removed stays mapped."""
        self._check_files()
        self.check_read()

    def _check_files(self) -> None:
        for file, header in self._headers.items():
            try:
                status = file.stat()
            except FileNotFoundError:
                continue
            if (status.st_size, status.st_mtime_ns) != (header.size, header.modified):
                raise MergeError(f"{file}: has changed since its header was read; start again")

    def tensor(self, span: Span, dtype: torch.dtype) -> Tensor:
        """A 1-D tensor over bytes of a file, which may be misaligned for its dtype."""
        import torch

        file, start, stop = span
        if start == stop:
            return torch.empty(0, dtype=dtype)
        self._guard(file)
        if start % dtype.itemsize:
            return _tensor(self._maps[file], dtype, (stop - start) // dtype.itemsize, start)
        if file not in self._bytes:
            self._bytes[file] = _tensor(self._maps[file], torch.uint8)
        return self._bytes[file][start:stop].view(dtype)

    def _guard(self, file: Path) -> None:
        """See that a page which is not there ends nothing but this job, by `check_read`; not without the native
        backend."""
        if file in self._guards or (native := _native()) is None:
            return
        with self._opening:
            if file not in self._guards:
                guard = native.guard(self._addresses[file], len(self._maps[file]))
                if guard:
                    weakref.finalize(self, native.unguard, guard)
                self._guards[file] = guard

    def whole(self, info: TensorInfo) -> Tensor:
        """A stored tensor in its shape."""
        from .dtypes import INTEGER_DTYPES, TORCH_DTYPES

        dtype = (TORCH_DTYPES | INTEGER_DTYPES)[info.dtype]
        return self.tensor((info.file, info.start, info.stop), dtype).view(info.shape)

    def copy(self, span: Span, memory: memoryview) -> None:
        """Copy bytes of a file, which need not be mapped for it. Raises MergeError where there is nothing to read."""
        file, start, stop = span
        try:
            descriptor = self.descriptor(file)
            while start < stop:
                read = os.preadv(descriptor, [memory], start)
                if not read:
                    self.fail(span)
                memory, start = memory[read:], start + read
        except OSError as error:
            self.fail(span, error.strerror)

    def descriptor(self, file: Path) -> int:
        """Of an open file, as long as these inputs live."""
        with self._opening:
            if file not in self._streams:
                try:
                    self._streams[file] = file.open("rb", buffering=0)
                except OSError as error:
                    raise self._failure(f"{file}: {self._unopened(error)}") from None
        return self._streams[file].fileno()

    def _unopened(self, error: OSError) -> str:
        """Why a file could not be opened, and what to do."""
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return f"cannot be opened beside {len(self._headers) - 1} others: allow more open files (ulimit -n)"
        return f"cannot be opened: {error.strerror}; mend that"

    @property
    def files(self) -> dict[Path, int]:
        """The files, with their sizes in bytes."""
        return {file: header.size for file, header in self._headers.items()}

    @property
    def roomy(self) -> bool:
        """Whether all files fit into memory together, so that their pages may stay mapped."""
        available = _available_memory()
        return available is not None and 2 * sum(self.files.values()) <= available

    def populate(self, spans: Iterable[Span]) -> None:
        """Map the pages of bytes about to be read, where the system can.

        Raises MergeError where there is nothing to read, which reading itself would end the process at.
        """
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
                failed = self._madvise(self._addresses[file] + first, stop - first, advice)
                if failed and advice == POPULATE_READ and ctypes.get_errno() == errno.EFAULT:
                    self.fail((file, start, stop))
                pages[:] = advice == POPULATE_READ

    def fail(self, span: Span, why: str | None = None) -> NoReturn:
        """Raise a MergeError that says that bytes cannot be read."""
        self._check_files()
        file, start, stop = span
        reason = f" ({why})" if why else ""
        raise self._failure(f"{file}: bytes {start} to {stop} cannot be read{reason}; mend the disk or its network")

    def _failure(self, what: str) -> MergeError:
        if self.resumable:
            return ResumableError(f"{what}, and go on with --resume")
        return MergeError(f"{what}, and start again")


def _native() -> Any:
    """What guards maps, None where it is not there; it is loaded with torch."""
    module = dispatch.load("native")
    return None if isinstance(module, str) else module


def _let_open(count: int) -> None:
    """Let this process have so many files open, or as many as the system lets it."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        with suppress(OSError, ValueError):  # more than the system has, where it says that there is no limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _tensor(memory: mmap.mmap, dtype: torch.dtype, count: int = -1, offset: int = 0) -> Tensor:
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset)


def _available_memory() -> int | None:
    """Bytes that the system can give without swapping, page cache and all; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


class Little:
    """In the place of ReadAhead where there is so little to read that handing it over would take longer."""

    def __init__(self, inputs: Inputs, chunks: Iterable[Chunk]) -> None:
        self._inputs, self._chunks = inputs, iter(chunks)

    def __enter__(self) -> Little:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self) -> None:
        """Map the next chunk's pages."""
        self._inputs.populate(next(self._chunks)[0])

    def done(self) -> None:
        """They stay until the map goes."""


@contextmanager
def head_start(inputs: Inputs) -> Iterator[None]:
    """Bring pages in by a thread while nothing can be read yet, as while torch is being imported."""
    stop = threading.Event()
    thread = threading.Thread(target=populate_all, args=(inputs, stop), name="fastmerge-head-start", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def populate_all(inputs: Inputs, stop: threading.Event) -> None:
    """Populate all files alike from their starts, until told to stop or a fourth of the available memory is in use."""
    files = inputs.files
    room = (_available_memory() or 0) // 4
    for start in range(0, max(files.values(), default=0), STEP):
        for file in (file for file, size in files.items() if start < size):
            end = min(start + STEP, files[file])
            room -= end - start
            if stop.is_set() or room < 0:
                return
            with suppress(MergeError):  # told when it is read
                inputs.populate([(file, start, end)])


class ReadAhead:
    """A thread that populates the spans of chunks in order, at most AHEAD before the one in use."""

    def __init__(self, inputs: Inputs, chunks: Sequence[Chunk]) -> None:
        self._inputs = inputs
        self._chunks = chunks
        self._room = threading.Semaphore(AHEAD)
        self._ready = threading.Semaphore(0)
        self._there = self._waited = 0  # chunks that were populated, and that were waited for
        self._stop = False
        self._error: MergeError | None = None
        self._thread = threading.Thread(target=self._run, name="fastmerge-read-ahead", daemon=True)

    def __enter__(self) -> ReadAhead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._room.release()
        self._thread.join()

    def wait(self) -> None:
        """Until the next chunk's pages are there. Raises what `populate` does."""
        self._ready.acquire()
        self._waited += 1
        if self._error is not None and self._waited > self._there:
            raise self._error

    def done(self) -> None:
        """The chunk waited for has been used."""
        self._room.release()

    def _run(self) -> None:
        try:
            self._populate()
        except MergeError as error:
            self._error = error
            self._ready.release()

    def _populate(self) -> None:
        mapped: deque[Sequence[Span]] = deque()
        for spans, release in self._chunks:
            self._room.acquire()
            if self._stop:
                return
            if len(mapped) == AHEAD:
                self._inputs.release(mapped.popleft())
            self._inputs.populate(spans)
            mapped.append(spans if release else ())
            self._there += 1
            self._ready.release()
