"""A device that is the CPU, with streams that lag behind: what does not wait for what it needs sees something else."""

from __future__ import annotations

import ctypes
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastmerge import dispatch
from fastmerge.engine.stream import Work

POISON = 0xA5

current_stream: ContextVar[HostStream | None] = ContextVar("current_stream", default=None)


class HostEvent:
    def __init__(self) -> None:
        self._done = threading.Event()

    def set(self) -> None:
        self._done.set()

    def synchronize(self) -> None:
        assert self._done.wait(60), "an event that never comes"


class HostStream:
    """Does what is put in in a thread of its own, `lag` seconds later. Errors are told when an event is asked for."""

    def __init__(self, lag: float) -> None:
        self._lag = lag
        self._error: BaseException | None = None
        self._tasks: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            self._do(self._tasks.get())

    def _do(self, task: Callable[[], object]) -> None:
        try:
            task()
        except BaseException as error:
            self._error = error

    def put(self, task: Callable[[], object]) -> None:
        def later() -> None:
            time.sleep(self._lag)
            task()

        self._tasks.put(later)

    def copy(self, to: Tensor, source: Tensor) -> None:
        self.put(lambda: to.copy_(source))

    def wait(self, event: Any) -> None:
        self._tasks.put(event.synchronize)

    def record(self) -> HostEvent:
        if self._error is not None:
            raise self._error
        event = HostEvent()
        self._tasks.put(event.set)
        return event

    @contextmanager
    def current(self) -> Iterator[None]:
        token = current_stream.set(self)
        try:
            yield
        finally:
            current_stream.reset(token)


def late(work: Work) -> Work:
    """The work, done when the current stream comes to it, at once where there is none. Until then its results are
    poisoned; what it reads is read then."""

    def put(task: Callable[[], object], memory: Sequence[Tensor] = ()) -> None:
        stream = current_stream.get()
        if stream is None:
            task()
            return
        for tensor in memory:
            tensor.view(torch.uint8).fill_(POISON)
        stream.put(task)

    prepare = work.prepare
    return replace(
        work,
        begin=lambda place: put(lambda: work.begin(place)),
        release=lambda: put(work.release),
        run=lambda start, sources, memory: put(lambda: work.run(start, sources, memory), memory),
        prepare=prepare and (lambda sources, memory: put(lambda: prepare(sources, memory), memory)),
    )


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

    def current(self) -> AbstractContextManager[Any]:
        return nullcontext()


class HostLoader:
    """The native loader, whose copies a stream does later."""

    def __init__(self, native: Any, staging: Tensor, threads: int, stream: HostStream) -> None:
        self._loader = native.Loader(staging.data_ptr(), staging.numel(), threads, -1, 0)
        self._stream = stream
        self.closed = False
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
        self.closed = True
        self._stream.record().synchronize()


class HostDevice:
    """`room`: bytes that can be had at a time; more is out of memory, as is every call of `empty` in `fails`.

    `loads`: whether there are loaders and unloaders, where the native backend is. `computes`: by how many seconds works
    that are `late` lag, 0 where they are computed at once.
    """

    def __init__(
        self,
        lag: float = 0.001,
        room: int = 1 << 40,
        fails: set[int] | None = None,
        loads: bool = True,
        computes: float = 0,
    ) -> None:
        self.place = torch.device("cpu")
        self.incoming, self.outgoing = HostStream(lag), HostStream(lag)
        self.computing, self.checking = HostStream(computes) if computes else HostCompute(), HostCompute()
        self.room, self.fails, self.loads = room, fails or set(), loads
        self.calls = self.forgotten = 0
        self._given: list[Tensor] = []
        self.loaders: list[HostLoader] = []
        self._gone: list[Tensor] = []  # kept, since a copy may come after whoever does not wait for it

    def empty(self, nbytes: int) -> Tensor:
        self.calls += 1
        if nbytes > self.room or self.calls in self.fails:
            raise torch.OutOfMemoryError(f"simulated: {nbytes} bytes")
        self._given.append(torch.full((nbytes,), POISON, dtype=torch.uint8))
        return self._given[-1]

    def given(self) -> int:
        """Bytes that were had since memory was last forgotten."""
        return sum(memory.numel() for memory in self._given)

    def staging(self, nbytes: int) -> Tensor:
        return torch.full((nbytes,), POISON, dtype=torch.uint8)

    def loader(self, staging: Tensor, threads: int) -> Any:
        native = dispatch.load("native")
        if isinstance(native, str) or not self.loads:
            return None
        self.loaders.append(HostLoader(native, staging, threads, self.incoming))
        return self.loaders[-1]

    def unloader(self, staging: Tensor, threads: int) -> Any:
        native = dispatch.load("native")
        if isinstance(native, str) or not self.loads:
            return None
        return native.Unloader(staging.data_ptr(), staging.numel(), threads, -1, 0)

    def free(self) -> int:
        return self.room

    def forget(self) -> None:
        self.forgotten += 1
        for memory in self._given:  # another may have it now
            memory.fill_(POISON)
        self._gone += self._given
        self._given = []

    def disturbed(self) -> bool:
        """Whether memory was written to that had been given back."""
        self.incoming.record().synchronize()
        return not all(memory.eq(POISON).all() for memory in self._gone)
