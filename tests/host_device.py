"""A device that is the CPU, with streams that lag behind: what does not wait for what it needs sees something else."""

from __future__ import annotations

import ctypes
import queue
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fastmerge import dispatch

POISON = 0xA5


class HostEvent:
    def __init__(self) -> None:
        self._done = threading.Event()

    def set(self) -> None:
        self._done.set()

    def synchronize(self) -> None:
        assert self._done.wait(60), "an event that never comes"


class HostStream:
    """Does what is put in in a thread of its own, `lag` seconds later."""

    def __init__(self, lag: float) -> None:
        self._lag = lag
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            self._tasks.get()()

    def copy(self, to: Tensor, source: Tensor) -> None:
        def later() -> None:
            time.sleep(self._lag)
            to.copy_(source)

        self._tasks.put(later)

    def wait(self, event: Any) -> None:
        self._tasks.put(event.synchronize)

    def record(self) -> HostEvent:
        event = HostEvent()
        self._tasks.put(event.set)
        return event

    def current(self) -> AbstractContextManager[Any]:
        return nullcontext()


class HostCompute(HostStream):
    """What the calling thread computes itself, at once."""

    def __init__(self) -> None:
        super().__init__(0)

    def wait(self, event: Any) -> None:
        event.synchronize()

    def record(self) -> HostEvent:
        event = HostEvent()
        event.set()
        return event


class HostLoader:
    """The native loader, whose copies a stream does later."""

    def __init__(self, native: Any, staging: Tensor, threads: int, stream: HostStream) -> None:
        self._loader = native.Loader(staging.data_ptr(), staging.numel(), threads, -1, 0)
        self._stream = stream
        self._copies: dict[int, list[tuple[int, Tensor]]] = {}

    def begin(self, spans: list[tuple[int, int, int, int]]) -> int:
        copies = [(to, torch.full((nbytes,), POISON, dtype=torch.uint8)) for _, _, nbytes, to in spans]
        taken = [(file, at, n, own.data_ptr()) for (file, at, n, _), (_, own) in zip(spans, copies, strict=True)]
        number = int(self._loader.begin(taken))
        self._copies[number] = copies
        return number

    def wait(self, number: int) -> tuple[int, int]:
        failed, error = self._loader.wait(number)
        for to, own in self._copies.pop(number):
            if own.numel():
                memory = (ctypes.c_uint8 * own.numel()).from_address(to)
                self._stream.copy(torch.frombuffer(memory, dtype=torch.uint8), own)
        return failed, error

    def close(self) -> None:
        self._loader.close()
        self._stream.record().synchronize()


class HostDevice:
    """`room`: bytes that can be had at a time; more is out of memory, as is every call of `empty` in `fails`.

    `loads`: whether there is a loader, where the native backend is.
    """

    def __init__(
        self, lag: float = 0.001, room: int = 1 << 40, fails: set[int] | None = None, loads: bool = True
    ) -> None:
        self.place = torch.device("cpu")
        self.incoming, self.outgoing = HostStream(lag), HostStream(lag)
        self.computing, self.checking = HostCompute(), HostCompute()
        self.room, self.fails, self.loads = room, fails or set(), loads
        self.calls = self.forgotten = 0
        self._given: list[Tensor] = []  # kept, since a copy may come after whoever does not wait for it
        self.pinned: set[int] = set()

    def empty(self, nbytes: int) -> Tensor:
        self.calls += 1
        if nbytes > self.room or self.calls in self.fails:
            raise torch.OutOfMemoryError(f"simulated: {nbytes} bytes")
        self._given.append(torch.full((nbytes,), POISON, dtype=torch.uint8))
        return self._given[-1]

    def staging(self, nbytes: int) -> Tensor:
        return torch.full((nbytes,), POISON, dtype=torch.uint8)

    def loader(self, staging: Tensor, threads: int) -> Any:
        native = dispatch.load("native")
        if isinstance(native, str) or not self.loads:
            return None
        return HostLoader(native, staging, threads, self.incoming)

    def pin(self, memory: Tensor) -> None:
        self.pinned.add(memory.data_ptr())

    def unpin(self, memory: Tensor) -> None:
        self.pinned.remove(memory.data_ptr())

    def free(self) -> int:
        return self.room

    def forget(self) -> None:
        self.forgotten += 1
