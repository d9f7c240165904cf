"""Where a GPU's memory runs out, or something fails: nothing is held, and the bytes are the same."""

from __future__ import annotations

import contextlib
import errno
import gc
import math
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from folders import content, near, state, write
from host_device import POISON, HostDevice, HostLoader
from piped import SHAPES, piped, planned

from fastmerge import dispatch
from fastmerge.engine import feed, merge, outlet, passes, pipeline, writer
from fastmerge.engine.feed import ROOMS
from fastmerge.engine.stream import Source
from fastmerge.errors import MergeError, ResumableError


@pytest.mark.parametrize("method", ["emr", "ties", "fr"])
def test_out_of_memory_shrinks_blocks(
    method: str, checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a load has no room or a computation, in the midst of a tensor or at its start: the same bytes."""
    merge.execute(planned(checkpoints, method, tmp_path / "cpu" / "out"))
    expected = content(tmp_path / "cpu" / "out")
    for i, fails in enumerate(({1}, {2}, {3}, set())):
        device, out = HostDevice(0.001 if fails else 0.01, fails=fails, loads=bool(fails)), tmp_path / str(i) / "out"
        if not fails:
            fail_once_computing(monkeypatch)
        piped(monkeypatch, planned(checkpoints, method, out, 4), [device])
        assert device.forgotten == (1 if not fails or device.calls > max(fails) else 0)
        assert content(out) == expected


def fail_once_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third piece that is computed has done half of its sums when memory runs out."""
    fill, count = pipeline._Run._fill, [0]

    def failing(self: Any, wanted: Any, compute: Any, drain: Any) -> Any:
        def once(memory: list[torch.Tensor]) -> None:
            compute(memory)
            count[0] += 1
            if count[0] == 3:
                raise torch.OutOfMemoryError("simulated")

        return fill(self, wanted, once, drain)

    monkeypatch.setattr(pipeline._Run, "_fill", failing)


def test_memory_is_let_go_of_where_loads_and_computing_run_out_of_it_at_once(
    checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that was not asked for any more holds none."""
    merge.execute(planned(checkpoints, "emr", tmp_path / "cpu" / "out"))
    begin, load, feeds = feed.Feed.__init__, pipeline._Run._load, list[weakref.ref[feed.Feed]]()
    monkeypatch.setattr(
        feed.Feed, "__init__", lambda self, *args: (feeds.append(weakref.ref(self)), begin(self, *args))[1]
    )

    def failing(self: Any, *arguments: Any) -> None:
        (first,) = feeds
        monkeypatch.setattr(pipeline._Run, "_load", load)
        first()._thread.join()  # type: ignore[union-attr]
        raise torch.OutOfMemoryError("simulated")

    device, held = HostDevice(fails={ROOMS}), list[bool]()
    monkeypatch.setattr(pipeline._Run, "_load", failing)
    monkeypatch.setattr(device, "forget", lambda: held.append(feeds[0]() is not None))
    gc.disable()
    try:
        piped(monkeypatch, planned(checkpoints, "emr", tmp_path / "out"), [device])
    finally:
        gc.enable()
    assert held == [False]
    assert content(tmp_path / "out") == content(tmp_path / "cpu" / "out")


@pytest.mark.parametrize("method", ["ties", "fr"])
def test_tensors_are_let_go_of_before_their_memory_is(
    method: str, checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was prepared of them too, once all of them is computed, and where memory runs out in their midst."""
    merge.execute(planned(checkpoints, method, tmp_path / "cpu" / "out"))
    prepare, done, device = passes.TensorPass.prepare, feed.Feed.done, HostDevice()
    prepared, held = list[passes.TensorPass](), list[bool]()

    def look() -> None:
        held.append(any(own.whole is not None or own.shares[0].prepared is not None for own in prepared))

    monkeypatch.setattr(
        passes.TensorPass, "prepare", lambda self, *given: (prepared.append(self), prepare(self, *given))
    )
    monkeypatch.setattr(feed.Feed, "done", lambda *given: (look(), done(*given)))
    monkeypatch.setattr(device, "forget", look)
    fail_once_computing(monkeypatch)
    piped(monkeypatch, planned(checkpoints, method, tmp_path / "out", 4), [device])
    assert len(prepared) > 1
    assert len(held) > 1
    assert not any(held)
    assert content(tmp_path / "out") == content(tmp_path / "cpu" / "out")


def test_out_of_memory_where_sums_are_looked_at(
    checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept for later is given back, and they are looked at again."""
    settle, calls = passes.Share.settle, [0]

    def failing(self: passes.Share) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise torch.OutOfMemoryError("simulated")
        settle(self)

    merge.execute(planned(checkpoints, "emr", tmp_path / "cpu" / "out"))
    monkeypatch.setattr(passes.Share, "settle", failing)
    device, forgotten = HostDevice(), list[None]()
    monkeypatch.setattr(device, "forget", lambda: forgotten.append(None))  # what is in use stays
    piped(monkeypatch, planned(checkpoints, "emr", tmp_path / "out"), [device])
    assert len(forgotten) == 1
    assert content(tmp_path / "out") == content(tmp_path / "cpu" / "out")


@pytest.mark.skipif(isinstance(dispatch.load("native"), str), reason="the native backend is not built")
def test_loaders_are_closed_before_their_memory_is_given_back(
    checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their threads would go on to write there; at the end as well as where a merge begins anew in smaller blocks."""
    device, still = HostDevice(fails={2}), list[HostLoader]()
    monkeypatch.setattr(device, "forget", lambda: still.extend(own for own in device.loaders if not own.closed))
    piped(monkeypatch, planned(checkpoints, "ties", tmp_path / "out"), [device])
    assert len(device.loaders) > 1
    assert not still
    assert all(loader.closed for loader in device.loaders)


def test_no_room_at_all_is_told(
    checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MergeError, match=r"memory of cpu does not suffice.*--device cpu"):
        piped(monkeypatch, planned(checkpoints, "ties", tmp_path / "out"), [HostDevice(room=100_000)])
    assert not (tmp_path / "out").exists()


def test_an_error_ends_all_devices(
    checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN are named as on the CPU, no thread stays, and the merge can be gone on with."""
    base, models = checkpoints
    bad = near(state(0, torch.bfloat16, SHAPES), 9) | {"ids": torch.arange(70_000)}
    bad["model.layers.0.bias"][3] = torch.nan
    wrong = {**models, "bad": write(tmp_path / "bad", bad)}
    with pytest.raises(MergeError, match="bad"):
        piped(monkeypatch, planned((base, wrong), "ties", tmp_path / "out"), [HostDevice(), HostDevice()])
    left = {thread.name.partition("_")[0] for thread in threading.enumerate()}
    assert not left & {"fastmerge-feed", "fastmerge-drain", "fastmerge-reader", "fastmerge-gpu"}


FAILING: dict[str, tuple[type, str]] = {
    "loading": (feed.Feed, "_begun"),
    "reading": (Source, "copy"),
    "waiting for a load": (feed.Feed, "arrived"),
    "computing": (pipeline._Run, "_chunks"),
    "looking at sums": (pipeline._Drain, "_finish"),
    "writing": (outlet._Unloading, "write"),
}


def fail_in(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a merge fail once some of it is on the device."""
    kind, name = FAILING[where]
    method, calls = getattr(kind, name), [0]

    def failing(*given: Any) -> Any:
        calls[0] += 1
        if calls[0] >= 3:
            raise OSError("simulated")
        return method(*given)

    monkeypatch.setattr(kind, name, failing)


class Releasing(HostDevice):
    """Lets go of memory as soon as nobody else has it, and remembers what was had."""

    def __init__(self, loads: bool) -> None:
        super().__init__(loads=loads)
        self.had: list[weakref.ref[torch.Tensor]] = []

    def empty(self, nbytes: int) -> torch.Tensor:
        memory = torch.full((nbytes,), POISON, dtype=torch.uint8)
        self.had.append(weakref.ref(memory))
        return memory


@pytest.mark.parametrize("count", [1, 2], ids=["one device", "two devices"])
@pytest.mark.parametrize("where", FAILING)
def test_no_memory_is_held_once_an_error_is_gone(
    where: str, count: int, checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the collector, which comes when it likes: a program that has caught the error may want all of the GPU."""
    devices = [Releasing(loads=where != "reading") for _ in range(count)]
    fail_in(where, monkeypatch)
    held = list[weakref.ref[Any]]()  # what knows all works, which have numbers of their own on the device
    begin = pipeline.Groups.__init__
    monkeypatch.setattr(
        pipeline.Groups, "__init__", lambda self, groups: (held.append(weakref.ref(self)), begin(self, groups))[1]
    )
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(OSError, ResumableError):
            piped(monkeypatch, planned(checkpoints, "ties", tmp_path / "out", 1), devices)
            pytest.fail("nothing has failed")
        held += [ref for device in devices for ref in device.had]
        assert len(held) > 1
        assert not [own for ref in held if (own := ref()) is not None]
    finally:
        gc.enable()


class Unable(HostDevice):
    """From a call on its unloader answers what it is told, of maps alone where that is what they have no pages for."""

    def __init__(self, call: float, answer: int | RuntimeError) -> None:
        super().__init__()
        self.call, self.answer, self.writes = call, answer, 0
        self.had: list[weakref.ref[torch.Tensor]] = []

    def empty(self, nbytes: int) -> torch.Tensor:
        memory = torch.full((nbytes,), POISON, dtype=torch.uint8)
        self.had.append(weakref.ref(memory))
        return memory

    def unloader(self, staging: torch.Tensor, threads: int) -> Any:
        native = super().unloader(staging, threads)
        if native is None:
            pytest.skip("the native backend is not built")

        def write(extents: list[tuple[int, ...]]) -> int:
            self.writes += 1
            if self.writes < self.call or (self.answer == -1 and not extents[0][-1]):
                return int(native.write(extents))
            if isinstance(self.answer, RuntimeError):
                raise RuntimeError(*self.answer.args)
            return self.answer

        return SimpleNamespace(write=write)


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (errno.ENOSPC, ResumableError, "disk is full"),
        (errno.EIO, ResumableError, "Input/output error"),
        (RuntimeError("an illegal memory access"), RuntimeError, "an illegal memory access"),
    ],
)
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
def test_what_cannot_be_written_is_told(
    last: bool,
    answer: int | RuntimeError,
    error: type[Exception],
    said: str,
    checkpoints: tuple[Path, dict[str, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And no memory of the device is held meanwhile, by the error either."""
    able = Unable(math.inf, 0)
    piped(monkeypatch, planned(checkpoints, "emr", tmp_path / "able" / "out", 1), [able])
    device = Unable(able.writes if last else 1, answer)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(error, match=said) as caught:
            piped(monkeypatch, planned(checkpoints, "emr", tmp_path / "out", 1), [device])
        assert len(device.had) > 1
        assert not [own for ref in device.had if (own := ref()) is not None]
        del caught
    finally:
        gc.enable()
    assert not (tmp_path / "out").exists()


def test_what_has_no_pages_of_a_map_is_written_without(
    checkpoints: tuple[Path, dict[str, Path]], memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "PIECE", 100_000)
    merge.execute(planned(checkpoints, "emr", memory / "cpu" / "out"))
    device = Unable(1, -1)
    piped(monkeypatch, planned(checkpoints, "emr", memory / "out"), [device])
    assert content(memory / "out") == content(memory / "cpu" / "out")


def test_a_device_that_cannot_be_written_from_ends_all(
    checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: the others do not merge all before it is told."""
    first, second, told = HostDevice(), HostDevice(), list[int]()

    def unable(*_: Any) -> Any:
        raise RuntimeError("the driver is too old")

    monkeypatch.setattr(second, "unloader", unable)
    made = planned(checkpoints, "emr", tmp_path / "out", 1)
    with pytest.raises(RuntimeError, match="too old"):
        piped(monkeypatch, made, [first, second], told.append)
    assert sum(told) < made.bytes_read
