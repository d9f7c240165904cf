"""The pipeline of GPUs, driven with devices that are the CPU: the very bytes of the ordinary engine."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import lora, write_adapter
from folders import content, near, state, write
from host_device import POISON, HostDevice, HostLoader, HostStream, current_stream, late

import fastmerge as fm
from fastmerge import dispatch, gpus
from fastmerge.engine import feed, merge, outlet, passes, pipeline
from fastmerge.engine.feed import ROOMS
from fastmerge.engine.statistics import Kept
from fastmerge.engine.stream import Source, Target
from fastmerge.engine.works import Reading
from fastmerge.errors import MergeError, ResumableError
from fastmerge.formats.mapping import Inputs
from fastmerge.methods._declaration import Statistics
from fastmerge.ops import BLOCK
from fastmerge.recipe.merge_plan import MergePlan
from fastmerge.recipe.plan import plan

SHAPES = {
    "model.layers.0.mlp.up.weight": (501, 700),  # more than five blocks
    "model.layers.0.mlp.down.weight": (300, 500),
    "model.layers.0.bias": (33,),
    "model.norm.weight": (1,),
    "model.empty": (0, 4),
}
METHODS: dict[str, dict[str, Any]] = {
    "emr": {},
    "ties": {"density": 0.3},
    "dare_ties": {"density": 0.4},
    "della": {"density": 0.5},
    "free": {"expert_density": 0.02},
    "fr": {},
    "slerp": {"t": 0.4},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    root = tmp_path_factory.mktemp("checkpoints")
    base = state(0, torch.bfloat16, SHAPES)
    integers = {"ids": torch.arange(70_000)}
    models = {f"m{k}": write(root / f"m{k}", near(base, k + 1) | integers) for k in range(3)}
    return write(root / "base", base | integers), models


def planned(
    checkpoints: tuple[Path, dict[str, Path]], method: str, out: Path, blocks: int = 2, **options: Any
) -> MergePlan:
    base, models = checkpoints
    used = dict(list(models.items())[:1]) if method == "slerp" else models
    made = plan(method, base, used, out, METHODS[method], device="cpu", **options)
    return replace(made, chunk=blocks * BLOCK)


def piped(
    monkeypatch: pytest.MonkeyPatch,
    made: MergePlan,
    devices: Sequence[HostDevice],
    done: Callable[..., None] | None = None,
) -> None:
    """Carry out a plan on these devices."""
    monkeypatch.setattr(merge, "open_devices", lambda _: devices)
    merge.execute(made, done)
    assert not any(device.disturbed() for device in devices)


@pytest.mark.parametrize("method", METHODS)
def test_same_bytes_as_on_the_cpu(
    method: str, checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the blocks, with loads of many segments, on one device and on two."""
    merge.execute(planned(checkpoints, method, tmp_path / "cpu" / "out"))
    expected = content(tmp_path / "cpu" / "out")
    monkeypatch.setattr(pipeline, "LEAST_STAGING", 6 * 30_000)
    monkeypatch.setattr(pipeline, "LEAST_PART", 8192)
    monkeypatch.setattr(pipeline, "PART", 8192)
    for blocks, count, loads in ((1, 1, True), (3, 1, False), (2, 2, True)):
        out = tmp_path / f"{blocks}-{count}" / "out"
        made = planned(checkpoints, method, out, blocks, memory="64MB")
        monkeypatch.setattr(pipeline, "STAGING", 6 * 30_000 * count)
        piped(monkeypatch, made, [HostDevice(loads=loads) for _ in range(count)])
        assert content(out) == expected


def test_progress_is_told_by_one_thread_at_a_time(
    checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    telling, told = threading.Lock(), list[int]()

    def progress(nbytes: int) -> None:
        assert telling.acquire(blocking=False), "two at once"
        time.sleep(0.01)
        told.append(nbytes)
        telling.release()

    piped(monkeypatch, planned(checkpoints, "emr", tmp_path / "out"), [HostDevice(), HostDevice()], progress)
    assert len(told) > 2


def test_loads_have_memory_of_the_stream_that_fills_it(
    checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was let go of in another may still be in use there."""
    device, own = HostDevice(), list[bool]()
    empty = device.empty

    def had(nbytes: int) -> torch.Tensor:
        if threading.current_thread().name == "fastmerge-feed":
            own.append(current_stream.get() is device.incoming)
        return empty(nbytes)

    monkeypatch.setattr(device, "empty", had)
    piped(monkeypatch, planned(checkpoints, "emr", tmp_path / "out"), [device])
    assert own
    assert all(own)


@pytest.fixture
def lagging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Works are computed when the device comes to them, and not when it is asked."""
    works = Reading.works
    monkeypatch.setattr(Reading, "works", lambda reading: [late(work) for work in works(reading)])


@pytest.mark.usefixtures("lagging")
@pytest.mark.parametrize(("blocks", "fails"), [(1, set()), (8, {2})], ids=["", "out of memory"])
@pytest.mark.parametrize("method", ["emr", "ties", "fr"])
def test_same_bytes_where_computing_lags(
    method: str,
    blocks: int,
    fails: set[int],
    checkpoints: tuple[Path, dict[str, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Results leave, sums are looked at, and memory is filled again or let go of once what uses them is computed."""
    merge.execute(planned(checkpoints, method, tmp_path / "cpu" / "out"))
    out = tmp_path / "piped" / "out"
    piped(monkeypatch, planned(checkpoints, method, out, blocks), [HostDevice(fails=fails, computes=0.02)])
    assert content(out) == content(tmp_path / "cpu" / "out")


@pytest.mark.parametrize("vocab", ["base", "pad"])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_computed_inputs(method: str, vocab: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that adapters make, and embeddings of other lengths, are fed block by block as they are computed."""
    shapes = {"model.embed_tokens.weight": (501, 300), "model.layers.0.up.weight": (301, 500)}
    base = state(0, torch.bfloat16, shapes)
    longer = near(base, 1) | state(2, torch.bfloat16, {"model.embed_tokens.weight": (520, 300)})
    adapter = write_adapter(tmp_path / "adapter", lora({"model.layers.0.up": (301, 500)}, 4, 3), target_modules=["up"])
    models = {"longer": write(tmp_path / "longer", longer), "adapter": adapter}
    models |= {"both": Path(f"{models['longer']}+{adapter}")}
    root = write(tmp_path / "base", base)
    monkeypatch.setattr(pipeline, "LEAST_STAGING", 6 * 30_000)
    monkeypatch.setattr(pipeline, "LEAST_PART", 8192)
    monkeypatch.setattr(pipeline, "PART", 8192)
    monkeypatch.setattr(pipeline, "STAGING", 6 * 30_000)

    def made(out: Path) -> MergePlan:
        return replace(plan(method, root, models, out, {}, device="cpu", vocab=vocab), chunk=BLOCK)

    merge.execute(made(tmp_path / "cpu" / "out"))
    piped(monkeypatch, made(tmp_path / "piped" / "out"), [HostDevice()])
    assert content(tmp_path / "piped" / "out") == content(tmp_path / "cpu" / "out")


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


@pytest.mark.parametrize("blocks", [1, 8])
def test_memory_of_the_device_is_had_once(
    blocks: int, checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rooms for loads, and slots, are not had anew as tensors are larger."""
    device = HostDevice()
    piped(monkeypatch, planned(checkpoints, "emr", tmp_path / "out", blocks), [device])
    assert 1 < device.calls <= ROOMS + pipeline.Pipeline.SLOTS


@pytest.mark.parametrize("method", ["linear", "emr"])
def test_memory_of_the_device_does_not_depend_on_the_number_of_models(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loads of more models have fewer elements."""
    monkeypatch.setattr(pipeline, "MEMORY", 4 * 60 * BLOCK)
    monkeypatch.setattr(pipeline, "MAX_CHUNK", BLOCK)
    base = {"up.weight": torch.zeros(42 * BLOCK, dtype=torch.bfloat16)}
    folder = write(tmp_path / "base", base)
    models = {f"m{k}": write(tmp_path / f"m{k}", near(base, k + 1)) for k in range(6)}
    for k in (2, 3, 6):
        device, used = HostDevice(), dict(list(models.items())[:k])
        made = replace(plan(method, folder, used, tmp_path / f"out{k}", device="cpu"), chunk=BLOCK)
        piped(monkeypatch, made, [device])
        assert 0.7 < device.given() / pipeline.MEMORY <= 1


def test_no_room_at_all_is_told(
    checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MergeError, match=r"memory of cpu does not suffice.*--device cpu"):
        piped(monkeypatch, planned(checkpoints, "ties", tmp_path / "out"), [HostDevice(room=100_000)])
    assert not (tmp_path / "out").exists()


def test_blocks_fit_the_free_memory(checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    made = planned(checkpoints, "emr", tmp_path / "out", 8)
    files = Inputs(made.headers)
    works = Reading(made, 0, [[]], [Statistics(3)], files, Kept()).works()
    sizes = [pipeline.Pipeline([HostDevice(room=r)], 1 << 30).chunk(works, 8 * BLOCK) for r in (1 << 40, 24 * 10**6, 1)]
    assert sizes[0] == 8 * BLOCK > sizes[1] > sizes[2] == BLOCK
    experts = [replace(work, whole_targets=(Target((), "BF16", numel=10**7),)) for work in works]
    assert pipeline.Pipeline([HostDevice(room=1 << 26)], 1 << 30).chunk(experts, 8 * BLOCK) == 8 * BLOCK


@pytest.mark.parametrize("method", ["ties", "fr"])
def test_whole_tensors_come_in_one_by_one_where_several_have_no_room(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only then. What is computed of one at a time stays as much as its own memory allows."""
    base = state(0, torch.bfloat16, {f"model.layers.{i}.up.weight": (900, 700) for i in range(3)})
    write(tmp_path / "base", base)
    models = {f"m{k}": write(tmp_path / f"m{k}", near(base, k + 1)) for k in range(3)}
    whole, feeds, chunks = 4 * 2 * 900 * 700, list[feed.Feed](), list[int]()
    begin, run = feed.Feed.__init__, pipeline.Pipeline.run
    monkeypatch.setattr(feed.Feed, "__init__", lambda self, *args: (feeds.append(self), begin(self, *args))[1])
    monkeypatch.setattr(pipeline.Pipeline, "run", lambda self, *args: (chunks.append(args[1]), run(self, *args))[1])
    held: dict[str, int] = {}
    for name, share in (("one", 1.5), ("all", 100.0)):
        device = HostDevice()
        monkeypatch.setattr(device, "free", lambda share=share: int(share * whole / pipeline.SHARE))
        had, sizes = device.empty, list[int]()
        monkeypatch.setattr(device, "empty", lambda n, had=had, to=sizes: (to.append(n + feeds[-1]._held()), had(n))[1])
        made = plan(method, tmp_path / "base", models, tmp_path / name / "out", METHODS[method], device="cpu")
        piped(monkeypatch, replace(made, chunk=2 * BLOCK), [device])
        held[name] = max(sizes)
    assert content(tmp_path / "one" / "out") == content(tmp_path / "all" / "out")
    assert held["one"] < 1.5 * whole < 2 * whole <= held["all"]
    assert set(chunks) == {2 * BLOCK}


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
    "sending": (HostStream, "copy"),
    "looking at sums": (pipeline._Drain, "_finish"),
    "writing": (outlet.DeviceSlot, "write"),
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


def test_progress_counts_every_byte_once(
    checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, told = planned(checkpoints, "emr", tmp_path / "out"), list[int]()
    piped(monkeypatch, made, [HostDevice(fails={2})], told.append)
    assert sum(told) == made.bytes_read


class NeverWaits(HostDevice):
    """A planted fault: computing does not wait for what comes in."""

    def __init__(self) -> None:
        super().__init__(lag=0.05)
        self.computing.wait = lambda event: None  # type: ignore[method-assign]


class NeverHeld(HostDevice):
    """A planted fault: what goes out is taken for gone at once."""

    def __init__(self) -> None:
        super().__init__(lag=0.05, loads=False)
        self.outgoing.record = self.computing.record  # type: ignore[method-assign]


class NeverSummed(HostDevice):
    """A planted fault: sums are looked at before they are computed."""

    def __init__(self) -> None:
        super().__init__(computes=0.02)
        self.checking.wait = lambda event: None  # type: ignore[method-assign]


class NeverUsed(HostDevice):
    """A planted fault: what is computed with is taken for used at once."""

    def __init__(self) -> None:
        super().__init__(computes=0.02)
        self.computing.record = self.checking.record  # type: ignore[method-assign]


@pytest.mark.usefixtures("lagging")
@pytest.mark.parametrize("fault", [NeverWaits, NeverHeld, NeverSummed, NeverUsed])
def test_what_does_not_wait_shows(
    fault: type[HostDevice],
    checkpoints: tuple[Path, dict[str, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The test's device tells a pipeline that misses an event from one that does not."""
    merge.execute(planned(checkpoints, "fr", tmp_path / "cpu" / "out"))
    try:
        piped(monkeypatch, planned(checkpoints, "fr", tmp_path / "out"), [fault()])
    except MergeError:  # what had not arrived was no number
        return
    assert content(tmp_path / "out") != content(tmp_path / "cpu" / "out")


@pytest.mark.usefixtures("lagging")
def test_what_is_written_before_it_is_computed_shows(
    checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault that the test's device tells."""
    merge.execute(planned(checkpoints, "emr", tmp_path / "cpu" / "out"))
    put = pipeline._Drain.put
    monkeypatch.setattr(
        pipeline._Drain,
        "put",
        lambda self, item: put(self, item._replace(event=None) if isinstance(item, pipeline._Filled) else item),
    )
    piped(monkeypatch, planned(checkpoints, "emr", tmp_path / "out"), [HostDevice(computes=0.02)])
    assert content(tmp_path / "out") != content(tmp_path / "cpu" / "out")


@pytest.mark.parametrize(("method", "noted"), [("emr", False), ("fr", True)])
def test_what_a_gpu_has_merged_is_verified(
    method: str, noted: bool, checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte where the CPU gives the same; what was filtered is not merged again, and that is told."""
    monkeypatch.setattr(gpus, "settle", lambda _: ("cuda:0", []))
    piped(monkeypatch, planned(checkpoints, method, tmp_path / "out"), [HostDevice()])
    found = fm.verify(tmp_path / "out")
    assert any("filtered on a GPU" in note for note in found.notes) == noted
    assert any("blocks" in check.what for check in found.checks) != noted
