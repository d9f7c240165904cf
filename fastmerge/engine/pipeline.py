"""Works carried out on GPUs: what comes in, is computed and goes out overlaps.

Every GPU takes the next tensor, or several small ones for the same launches, when it is free, so that several share a
pass. The bytes are those that the backend gives for any blocks, on any number of GPUs.
"""

from __future__ import annotations

import os
import queue
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import torch
from torch import Tensor

from ..batching import batch
from ..errors import MergeError
from ..formats.mapping import Inputs
from ..recipe.memory import BLOCK, MAX_CHUNK
from .devices import Device, Event
from .feed import ROOMS, Feed, Load, load_bytes, loads_of
from .outlet import LEAST_PART, PART, PARTS, DeviceSlot, Outlet
from .stream import Piece, Target, Work, slot_bytes
from .writer import Writer

# Bytes of a GPU that loads and results take where memory has room, of any number of models. A load of a base and three
# models has 330 MB: what Python does for it is little beside its way.
MEMORY = 1760 << 20
# Bytes of the host, at most, an eighth of the memory budget: what is read, and as much computed. Few enough to stay in
# the processor's caches: with 128 MiB a merge takes 1.25 times as long. Of 16 MiB each thread's part is short for what
# a copy costs besides: 1.2 times (16 cores beside an H200).
STAGING = 24 << 20
LEAST_STAGING = 1 << 20
TOGETHER = 256  # small tensors at a time, at most
SHARE = 0.5  # of a GPU's free memory that loads and results may take; the rest is for what ops keep

Finished = Callable[[Work, list[Tensor]], None]


class Pipeline:
    """Carries out the works of a pass on devices, within `memory` bytes of the host."""

    WRITERS = min(8, max(4, (os.cpu_count() or 1) // 4))  # threads; more take cores from those that read
    SLOTS = 6  # chunks of output on each device: one that is computed, and those that are being written, in pieces

    def __init__(self, devices: Sequence[Device], memory: int) -> None:
        self.devices, self.memory = devices, memory

    def chunk(self, works: Sequence[Work], chunk: int) -> int:
        """As many of `chunk` elements at a time as the memory of every device has room for.

        The largest chunk of the CPU's, which serves its caches, becomes what fills MEMORY.
        """
        if chunk == MAX_CHUNK:
            chunk = max(chunk, int(MEMORY / max(map(element_bytes, works), default=MEMORY)) // BLOCK * BLOCK)
        free = self.free()
        while chunk > BLOCK:
            groups = groups_of(works, chunk)
            # What is written with whole tensors, few slots at a time, does not shrink with the chunk.
            if self.SLOTS * usual_results(groups, chunk) + ROOMS * usual_load(groups, chunk) <= free:
                break
            chunk = max(BLOCK, chunk * 7 // 8 // BLOCK * BLOCK)
        return chunk

    def free(self) -> int:
        """Bytes of every device that loads and results may take."""
        return int(SHARE * min(device.free() for device in self.devices))

    @property
    def staging(self) -> int:
        """Bytes of staging memory of one device, for what comes in."""
        return max(LEAST_STAGING, min(STAGING, self._share))

    @property
    def leaving(self) -> int:
        """Bytes of staging memory of one device, for what is written."""
        part = max(LEAST_PART, min(PART, self._share // (self.WRITERS * PARTS)))
        return (1 << part.bit_length() - 1) * PARTS * self.WRITERS  # a part is a power of two

    @property
    def _share(self) -> int:
        return self.memory // 8 // len(self.devices)

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
        groups = groups_of(works, chunk)
        left = Groups(abreast(groups))
        most = self.free() - group_bytes(groups, chunk) * self.SLOTS
        telling = threading.Lock()  # a thread of each device tells

        def told(work: Work, sums: list[Tensor]) -> None:
            inputs.check_read()
            with telling:
                finished(work, sums)
                if progress:
                    progress(work.bytes_read)

        def begin(device: Device) -> None:
            try:
                outlet = Outlet(device, self.SLOTS, self.WRITERS, self.leaving)
                _Run(device, outlet, left, chunk, most, self.staging, inputs, writer, told).run()
            except BaseException:
                left.stop()
                raise

        with ThreadPoolExecutor(len(self.devices), "fastmerge-gpu") as pool:
            runs = [pool.submit(begin, device) for device in self.devices]
            try:
                for _ in map(Future.result, runs):  # a name for one would hold its error, which holds this frame
                    pass
            finally:
                left.stop()
                wait(runs)
                while runs:
                    _let_go(runs.pop())


class Groups:
    """Groups of works that devices take from, one after the other."""

    def __init__(self, groups: Sequence[list[Work]]) -> None:
        self._groups, self._all = deque(groups), groups

    def take(self) -> list[Work]:
        """The next, in the end an empty one."""
        try:
            return self._groups.popleft()
        except IndexError:
            return []

    def usual_load(self, chunk: int, alone: bool) -> int:
        """As the function has it; alone: works come one by one."""
        return usual_load(self._together(alone), chunk)

    def usual_results(self, chunk: int, alone: bool) -> int:
        """As the function has it; alone: works come one by one."""
        return usual_results(self._together(alone), chunk)

    def _together(self, alone: bool) -> Sequence[list[Work]]:
        return [[work] for group in self._all for work in group] if alone else self._all

    def stop(self) -> None:
        """Let there be none."""
        self._groups.clear()


def groups_of(works: Sequence[Work], chunk: int) -> list[list[Work]]:
    """The works in order, those that follow each other together where they are no more than a chunk."""
    groups: list[list[Work]] = []
    room = 0
    for work in works:
        if not groups or work.numel > room or len(groups[-1]) == TOGETHER:
            groups.append([])
            room = chunk
        groups[-1].append(work)
        room -= work.numel
    return groups


def abreast(groups: Sequence[list[Work]]) -> list[list[Work]]:
    """The groups in an order in which the files that they go to fill abreast, so that they are written side by side."""
    written: Counter[str] = Counter()
    ends: list[tuple[str, int]] = []
    for group in groups:
        targets = (target for work in group for target in (*work.targets, *work.whole_targets))
        file = next((place.file for target in targets for place in target.places), "")
        written[file] += sum(work.bytes_written for work in group)
        ends.append((file, written[file]))
    order = sorted(zip(ends, range(len(groups)), strict=True), key=lambda end: end[0][1] / (written[end[0][0]] or 1))
    return [groups[i] for _, i in order]


class _Run:
    """The works that one device takes. Where its memory runs out, they start again one by one, in smaller blocks."""

    def __init__(
        self,
        device: Device,
        outlet: Outlet,
        groups: Groups,
        chunk: int,
        most: int,
        staging: int,
        inputs: Inputs,
        writer: Writer,
        finished: Finished,
    ) -> None:
        """most: bytes that loads take together, unless one takes more."""
        self.device, self.outlet, self.groups = device, outlet, groups
        self.chunk, self.most, self.staging = chunk, most, staging
        self.inputs, self.writer, self.finished = inputs, writer, finished
        self.begun: deque[Work] = deque()  # that the feed has taken, and of which not all is computed
        self.again: deque[Work] = deque()  # of these, what the feed has still to take, one by one
        self.scarce = False  # whether memory has run out, so that nothing is computed together any more
        self.usual_results = 0  # bytes that slots have from the first on

    def run(self) -> None:
        with _Drain(self.device, self.outlet, self.writer) as drain:
            while True:
                try:
                    return self._compute(drain)
                except torch.OutOfMemoryError as error:
                    problem = str(error)  # not the error, whose traceback holds memory
                self._shrink(problem)

    def _take(self) -> list[Work]:
        if not self.again:
            group = self.groups.take()
            self.begun += group
            if not self.scarce:
                return group
            self.again += group
        return [self.again.popleft()] if self.again else []

    def _shrink(self, problem: str) -> None:
        if self.chunk <= BLOCK:
            name = self.begun[0].sources[0].info.name if self.begun else "?"
            raise MergeError(
                f"tensor {name!r}: the memory of {self.device.place} does not suffice, even in the smallest blocks "
                f"({problem.splitlines()[0]}); free some, or pass --device cpu"
            )
        self.chunk, self.most, self.scarce = halved(self.chunk), self.most // 2, True
        self.again = deque(self.begun)
        for work in self.begun:
            work.release()
        self.outlet.forget()
        self.device.forget()

    def _compute(self, drain: _Drain) -> None:
        computing = self.device.computing
        room = self.groups.usual_load(self.chunk, self.scarce)
        self.usual_results = self.groups.usual_results(self.chunk, self.scarce)
        feed = Feed(self.device, self._take, self.chunk, room, self.most, self.staging, self.inputs)
        with feed, computing.current():
            for load in feed:
                drain.check()
                for arrived in feed.arrived(load):
                    computing.wait(arrived)
                self._load(load, drain)
                computed = computing.record()
                for piece in load.pieces:
                    if piece.stop == piece.work.numel:
                        self.begun.popleft()
                        piece.work.release()  # now: `done` is called when it is computed, and the room may go before
                        drain.put(_Finished(self.finished, piece.work, computed))
                feed.done(load, computed)

    def _load(self, load: Load, drain: _Drain) -> None:
        """Compute all of a load: what has to be prepared, then the chunks, which of several works are one each."""
        parts: list[_Part] = []
        for piece, sources in zip(load.pieces, load.sources, strict=True):
            work = piece.work
            if piece.start == 0:
                work.begin(self.device.place)
            if not piece.whole:
                parts.append(_Part(piece, sources))
                continue
            self._prepare(work, sources, drain)
            parts += [
                _Part(chunk, [source[chunk.start : chunk.stop] for source in sources])
                for chunk in work.pieces(self.chunk)
                if not chunk.whole
            ]
        if len(load.pieces) > 1:
            self._chunks(parts, drain)
        else:
            for part in parts:
                self._chunks([part], drain)

    def _prepare(self, work: Work, sources: list[Tensor], drain: _Drain) -> None:
        assert work.prepare is not None
        prepare = work.prepare
        targets = [_Wanted(target, 0, target.numel, target.numel) for target in work.whole_targets]
        self._fill(targets, lambda memory: prepare(sources, memory), drain)

    def _chunks(self, parts: Sequence[_Part], drain: _Drain) -> None:
        """Compute chunks of different works at once."""
        targets = [
            _Wanted(target, piece.start, piece.stop, piece.work.numel)
            for piece, _ in parts
            for target in piece.work.targets
        ]

        def compute(memory: list[Tensor]) -> None:
            results = iter(memory)
            with batch():
                for piece, sources in parts:
                    piece.work.run(piece.start, sources, [next(results) for _ in piece.work.targets])

        self._fill(targets, compute, drain)

    def _fill(self, wanted: Sequence[_Wanted], compute: Callable[[list[Tensor]], None], drain: _Drain) -> None:
        """Compute what is wanted, and send it out."""
        if not wanted:
            return compute([])
        slot = self.outlet.slot()
        try:
            self.writer.check()
            nbytes = sum(one.target.chunk_bytes(one.stop - one.start) for one in wanted)
            slot.reserve(nbytes, lambda: self.device.empty(max(nbytes, self.usual_results)))
            compute([one.target.take(slot, one.start, one.stop, one.numel) for one in wanted])
            filled = _Filled(slot, self.device.computing.record())
        except BaseException:
            slot.clear()
            drain.put(_Filled(slot, None))
            raise
        return drain.put(filled)


class _Part(NamedTuple):
    """A chunk of a work, and its sources' elements."""

    piece: Piece
    sources: list[Tensor]


class _Wanted(NamedTuple):
    """Elements of a target, of all `numel`."""

    target: Target
    start: int
    stop: int
    numel: int


class _Filled(NamedTuple):
    """A slot whose bytes are there after an event."""

    slot: DeviceSlot
    event: Event | None


class _Finished(NamedTuple):
    """A work, of which all is computed after an event."""

    finished: Finished
    work: Work
    event: Event


class _Drain:
    """A thread that hands slots to the writer once they are filled, and looks at what was found of finished works.

    A context: leaving it waits for the last.
    """

    def __init__(self, device: Device, outlet: Outlet, writer: Writer) -> None:
        self._device, self._outlet, self._writer = device, outlet, writer
        self._items: queue.SimpleQueue[_Filled | _Finished | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="fastmerge-drain", daemon=True)
        self._error: BaseException | None = None

    def __enter__(self) -> _Drain:
        self._thread.start()
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self._items.put(None)
        self._thread.join()
        if failure is None:
            self.check()

    def put(self, item: _Filled | _Finished) -> None:
        self._items.put(item)

    def check(self) -> None:
        """Raise what the thread has met."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            try:
                if isinstance(item, _Filled):
                    if item.event is not None:
                        item.event.synchronize()
                elif self._error is None:
                    self._finish(item)
            except BaseException as error:  # slots go on to be handed back
                self._error = error
                if isinstance(item, _Filled):
                    item.slot.clear()
            if isinstance(item, _Filled):
                self._writer.write(item.slot, self._outlet.freeing(item.slot))

    def _finish(self, item: _Finished) -> None:
        checking = self._device.checking
        checking.wait(item.event)
        with checking.current():
            try:
                sums = item.work.done()
            except torch.OutOfMemoryError:  # for a few numbers; what is kept for later may have the room
                self._device.forget()
                sums = item.work.done()
        item.finished(item.work, sums)


def _let_go(run: Future[None]) -> None:
    """Of what the thread of a run that has failed held, devices' memory among it: its error would keep it."""
    error = run.exception()
    if error is not None:
        traceback.clear_frames(error.__traceback__)


def group_bytes(groups: Sequence[Sequence[Work]], chunk: int) -> int:
    """Memory that a slot needs for any of the groups."""
    return max((sum(slot_bytes([work], chunk) for work in group) for group in groups), default=0)


def usual_load(groups: Sequence[Sequence[Work]], chunk: int) -> int:
    """Bytes of the largest load but those of works that come in whole."""
    loads = (next(loads_of(group, chunk)) for group in groups)
    return max((load_bytes(load) for load in loads if not load[0].whole), default=0)


def usual_results(groups: Sequence[Sequence[Work]], chunk: int) -> int:
    """Bytes of what is computed of the largest load, but what is written with whole tensors."""
    return max((sum(work.chunk_bytes(chunk) for work in group) for group in groups), default=0)


def element_bytes(work: Work) -> float:
    """What an element of all sources, and of what is computed of them, takes of the device's memory."""
    n = max(BLOCK, work.least_chunk)
    sources, results = (source.nbytes(0, n) for source in work.sources), (t.chunk_bytes(n) for t in work.targets)
    return max(1.0, (ROOMS * sum(sources) + Pipeline.SLOTS * sum(results)) / n)


def halved(chunk: int) -> int:
    """Half of it, in whole blocks."""
    return max(BLOCK, chunk // 2 // BLOCK * BLOCK)
