"""A GPU as the pipeline sees it: memory, streams and events. This file alone knows CUDA.

Work put into a stream is done in order, beside other streams' and the host's; an event is a place in a stream.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import dispatch


class Event(Protocol):
    """All that was put into a stream before it."""

    def synchronize(self) -> None:
        """Wait until that is done."""


class Stream(Protocol):
    """What is put in is done in order."""

    def copy(self, to: Tensor, source: Tensor) -> None:
        """Copy, later; both must stay as they are until then."""

    def wait(self, event: Event) -> None:
        """Do what follows after the event."""

    def record(self) -> Event:
        """The event of all so far."""

    def current(self) -> AbstractContextManager[Any]:
        """What this thread computes on the device goes into this stream."""


class Loader(Protocol):
    """Threads that bring spans of files into a stream (kernels/native/loader.hpp)."""

    def begin(self, spans: Sequence[tuple[int, int, int, int]]) -> int:
        """Bring in spans: descriptor, offset, bytes, address on the device. Returns a number for all of them."""

    def wait(self, number: int) -> tuple[int, int]:
        """Until all are in the stream. Returns which could not be read, or −1, and its errno, 0 at a file's end."""

    def close(self) -> None:
        """Drop what has not begun, and wait for what has."""


class Unloader(Protocol):
    """Writes bytes of a device to files (kernels/native/unloader.hpp)."""

    def write(self, extents: Sequence[tuple[int, int, int, int, int, int, int, int]]) -> int:
        """Addresses on the device, and the rest of an Extent. Returns 0, an errno, or −1 where maps have no pages."""


class Device(Protocol):
    """Memory of its own, and streams for what comes in, is computed, goes out, and for looking at what was found."""

    place: torch.device

    @property
    def incoming(self) -> Stream: ...

    @property
    def computing(self) -> Stream: ...

    @property
    def outgoing(self) -> Stream: ...

    @property
    def checking(self) -> Stream: ...

    def empty(self, nbytes: int) -> Tensor:
        """Memory of the device, uint8. Raises torch.OutOfMemoryError."""

    def staging(self, nbytes: int) -> Tensor:
        """Memory of the host that the device copies from and to by itself, uint8."""

    def loader(self, staging: Tensor, threads: int) -> Loader | None:
        """One for the incoming stream, with staging memory that stays until it is closed; None where there is none."""

    def unloader(self, staging: Tensor, threads: int) -> Unloader | None:
        """One by the outgoing stream, with staging memory that stays as long; None where there is none."""

    def free(self) -> int:
        """Bytes of memory that can still be had."""

    def forget(self) -> None:
        """Give back memory that is kept for later."""


class Cuda:
    """One GPU."""

    def __init__(self, name: str) -> None:
        self.place = torch.device(name)
        self.incoming, self.computing, self.outgoing, self.checking = (CudaStream(self.place) for _ in range(4))

    def empty(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.place)

    def staging(self, nbytes: int) -> Tensor:
        try:
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # where little memory may be page-locked copies are only slower
            return torch.empty(nbytes, dtype=torch.uint8)

    def loader(self, staging: Tensor, threads: int) -> Loader | None:
        made: Loader | None = self._native("Loader", staging, threads, self.incoming)
        return made

    def unloader(self, staging: Tensor, threads: int) -> Unloader | None:
        made: Unloader | None = self._native("Unloader", staging, threads, self.outgoing)
        return made

    def _native(self, kind: str, staging: Tensor, threads: int, stream: CudaStream) -> Any:
        """One of the native backend's, None where that was not built."""
        native = dispatch.load("native")
        if isinstance(native, str):
            return None
        return getattr(native, kind)(staging.data_ptr(), staging.numel(), threads, self.place.index or 0, stream.number)

    def free(self) -> int:
        cached = torch.cuda.memory_reserved(self.place) - torch.cuda.memory_allocated(self.place)
        return torch.cuda.mem_get_info(self.place)[0] + cached

    def forget(self) -> None:
        torch.cuda.empty_cache()


class CudaStream:
    """A stream of CUDA's."""

    def __init__(self, place: torch.device) -> None:
        self._stream = torch.cuda.Stream(place)  # type: ignore[no-untyped-call]

    @property
    def number(self) -> int:
        """As CUDA knows it."""
        return int(self._stream.cuda_stream)

    def copy(self, to: Tensor, source: Tensor) -> None:
        with self.current():
            to.copy_(source, non_blocking=True)

    def wait(self, event: Event) -> None:
        assert isinstance(event, torch.cuda.Event)
        self._stream.wait_event(event)

    def record(self) -> Event:
        # A thread that waits leaves its core.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    @contextmanager
    def current(self) -> Iterator[None]:
        # A stream alone would go back to the first GPU in the end, and make a context there.
        with torch.cuda.device(self._stream.device), torch.cuda.stream(self._stream):
            yield


# Once for all merges of a process: what torch keeps of freed memory is a stream's own, and each merge's would stay.
_opened = functools.cache(Cuda)


def open_devices(names: str) -> Sequence[Device]:
    """The devices of a settled name (fastmerge.gpus), none for the CPU: "cuda:0,cuda:1"."""
    devices = [] if names == "cpu" else [_opened(name) for name in names.split(",")]
    for device in devices:  # other streams than the one that memory was freed in are about to fill it
        torch.cuda.current_stream(device.place).synchronize()
    return devices
