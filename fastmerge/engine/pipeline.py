"""Works carried out on GPUs: what comes in, is computed and goes out overlaps.

Every GPU takes the next tensor when it is free, so that several share a pass. The bytes are those that the backend
gives for any blocks, on any number of GPUs.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import MergeError
from ..formats.mapping import Inputs
from ..recipe.memory import BLOCK, SLOTS
from .devices import Device, Event
from .feed import ROOMS, Feed, Load, load_bytes, loads_of
from .stream import Target, Work, slot_bytes
from .writer import Slot, Writer

STAGING = 96 << 20  # bytes of the host, at most; an eighth of the memory budget
LEAST_STAGING = 1 << 20
SHARE = 0.5  # of a GPU's free memory that loads and results may take; the rest is for what ops keep

Finished = Callable[[Work, list[Tensor]], None]


class Pipeline:
    """Carries out the works of a pass on devices, within `memory` bytes of the host."""

    def __init__(self, devices: Sequence[Device], memory: int) -> None:
        self.devices, self.memory = devices, memory

    def chunk(self, works: Sequence[Work], chunk: int) -> int:
        """As many of `chunk` elements at a time as the host's memory and every device's have room for."""
        free = SHARE * min(device.free() for device in self.devices)
        left = self.memory - self.staging * len(self.devices)
        while chunk > BLOCK and (
            slot_bytes(works, chunk) * SLOTS > left or max((device_bytes(w, chunk) for w in works), default=0) > free
        ):
            chunk = halved(chunk)
        return chunk

    @property
    def staging(self) -> int:
        """Bytes of staging memory of one device."""
        return max(LEAST_STAGING, min(STAGING, self.memory // 8 // len(self.devices)))

    def run(
        self,
        works: Sequence[Work],
        chunk: int,
        inputs: Inputs,
        writer: Writer,
        finished: Finished,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Carry out works. `finished` is told each and its sums, in any order, `progress` the bytes read."""
        left = Works(works)

        def told(work: Work, sums: list[Tensor]) -> None:
            finished(work, sums)
            if progress:
                progress(work.bytes_read)

        for slot in writer.slots:
            self.devices[0].pin(slot.bytes)
        try:
            with ThreadPoolExecutor(len(self.devices), "fastmerge-gpu") as pool:
                runs = [
                    pool.submit(_Run(device, left, chunk, self.staging, inputs, writer, told).run)
                    for device in self.devices
                ]
                try:
                    for run in runs:
                        run.result()
                finally:
                    left.stop()
        finally:
            for slot in writer.slots:
                self.devices[0].unpin(slot.bytes)


class Works:
    """Works that devices take from, one after the other."""

    def __init__(self, works: Sequence[Work]) -> None:
        self._works = deque(works)

    def take(self) -> Work | None:
        try:
            return self._works.popleft()
        except IndexError:
            return None

    def stop(self) -> None:
        """Let there be none."""
        self._works.clear()


class _Run:
    """The works that one device takes. Where its memory runs out, the work is begun again in smaller blocks."""

    def __init__(
        self, device: Device, works: Works, chunk: int, staging: int, inputs: Inputs, writer: Writer, finished: Finished
    ) -> None:
        self.device, self.works, self.chunk, self.staging = device, works, chunk, staging
        self.inputs, self.writer, self.finished = inputs, writer, finished
        self.begun: deque[Work] = deque()  # that the feed has taken, and of which not all is computed
        self.again: deque[Work] = deque()  # of these, what a feed after the one that failed has still to take

    def run(self) -> None:
        try:
            with _Drain(self.writer) as drain:
                while True:
                    try:
                        return self._compute(drain)
                    except torch.OutOfMemoryError as error:
                        problem = str(error)  # not the error, whose traceback holds memory
                    self._shrink(problem)
        except BaseException:
            self.works.stop()
            raise

    def _take(self) -> Work | None:
        if self.again:
            return self.again.popleft()
        work = self.works.take()
        if work is not None:
            self.begun.append(work)
        return work

    def _shrink(self, problem: str) -> None:
        if self.chunk <= BLOCK:
            name = self.begun[0].sources[0].info.name if self.begun else "?"
            raise MergeError(
                f"tensor {name!r}: the memory of {self.device.place} does not suffice, even in the smallest blocks "
                f"({problem.splitlines()[0]}); free some, or pass --device cpu"
            )
        self.chunk = halved(self.chunk)
        self.again = deque(self.begun)
        self.device.forget()

    def _compute(self, drain: _Drain) -> None:
        computing = self.device.computing
        with Feed(self.device, self._take, self.chunk, self.staging, self.inputs) as feed, computing.current():
            for load in feed:
                assert load.arrived is not None
                computing.wait(load.arrived)
                if load.start == 0:
                    load.work.begin(self.device.place)
                if load.whole:
                    self._prepare(load, drain)
                else:
                    self._piece(load.work, load.start, load.sources, load.stop, drain)
                if load.stop == load.work.numel:
                    sums = load.work.done()
                    self.begun.popleft()
                    drain.put(_Finished(self.finished, load.work, sums))
                feed.done(load, computing.record())

    def _prepare(self, load: Load, drain: _Drain) -> None:
        """The whole of a work, then its chunks, which are where they are already."""
        work = load.work
        assert work.prepare is not None
        prepare = work.prepare
        self._fill(work.whole_targets, None, 0, work.numel, lambda memory: prepare(load.sources, memory), drain)
        for piece in work.pieces(self.chunk):
            if not piece.whole:
                parts = [source[piece.start : piece.stop] for source in load.sources]
                self._piece(work, piece.start, parts, piece.stop, drain)

    def _piece(self, work: Work, start: int, sources: list[Tensor], stop: int, drain: _Drain) -> None:
        self._fill(work.targets, work, start, stop, lambda memory: work.run(start, sources, memory), drain)

    def _fill(
        self,
        targets: Sequence[Target],
        work: Work | None,
        start: int,
        stop: int,
        compute: Callable[[list[Tensor]], None],
        drain: _Drain,
    ) -> None:
        """Compute targets' elements start … stop (all of them without a work), and send them out."""
        if not targets:
            return compute([])
        slot = self.writer.slot()
        try:
            places = [
                target.take(slot, 0, target.numel, target.numel)
                if work is None
                else target.take(slot, start, stop, work.numel)
                for target in targets
            ]
            memory = [torch.empty_like(place, device=self.device.place) for place in places]
            compute(memory)
        except BaseException:
            slot.clear()
            drain.put(_Filled(slot, None, []))
            raise
        outgoing = self.device.outgoing
        outgoing.wait(self.device.computing.record())
        for place, result in zip(places, memory, strict=True):
            outgoing.copy(place, result)
        return drain.put(_Filled(slot, outgoing.record(), memory))


class _Filled(NamedTuple):
    """A slot whose bytes are there after an event; until then the device's memory is held."""

    slot: Slot
    event: Event | None
    memory: list[Tensor]


class _Finished(NamedTuple):
    finished: Finished
    work: Work
    sums: list[Tensor]


class _Drain:
    """A thread that hands slots to the writer once they are filled. A context: leaving it waits for the last."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._items: queue.SimpleQueue[_Filled | _Finished | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="fastmerge-drain", daemon=True)
        self._error: BaseException | None = None

    def __enter__(self) -> _Drain:
        self._thread.start()
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self._items.put(None)
        self._thread.join()
        if failure is None and self._error is not None:
            raise self._error

    def put(self, item: _Filled | _Finished) -> None:
        self._items.put(item)

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            try:
                if isinstance(item, _Finished):
                    if self._error is None:
                        item.finished(item.work, item.sums)
                    continue
                if item.event is not None:
                    item.event.synchronize()
            except BaseException as error:  # raised when the pass ends; slots go on to be handed back
                self._error = error
                if isinstance(item, _Filled):
                    item.slot.clear()
            if isinstance(item, _Filled):
                self._writer.put(item.slot)


def device_bytes(work: Work, chunk: int) -> int:
    """Memory of the device for the loads of a work and its results on their way out."""
    start, stop, _ = next(loads_of(work, chunk))
    results = sum(target.chunk_bytes(min(chunk, work.numel)) for target in work.targets)
    return ROOMS * load_bytes(work, start, stop) + (SLOTS + 1) * results


def halved(chunk: int) -> int:
    """Half of it, in whole blocks."""
    return max(BLOCK, chunk // 2 // BLOCK * BLOCK)
