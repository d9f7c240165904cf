"""The pipeline of GPUs, driven with devices that are the CPU: the very bytes of the ordinary engine."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapters import lora, write_adapter
from folders import content, family, near, state, weights, write
from host_device import HostDevice, current_stream, late
from piped import MANY, METHODS, crowded, piped, planned

import fastmerge as fm
from fastmerge import gpus
from fastmerge.engine import feed, merge, pipeline
from fastmerge.engine.feed import ROOMS, Feed
from fastmerge.engine.statistics import Kept
from fastmerge.engine.stream import Target
from fastmerge.engine.works import Reading
from fastmerge.engine.writer import Writer
from fastmerge.errors import MergeError
from fastmerge.formats.mapping import Inputs
from fastmerge.methods._declaration import Statistics
from fastmerge.ops import BLOCK
from fastmerge.recipe.merge_plan import MergePlan
from fastmerge.recipe.plan import plan


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


class Gone:
    """In place of an event: nobody waits."""

    def synchronize(self) -> None:
        pass


@pytest.mark.usefixtures("lagging")
@pytest.mark.parametrize("fault", ["", "room", "slot"])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_the_merges_of_a_card_show_faults(
    method: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those by which tests/cuda holds a GPU's bytes against the CPU's: rooms and slots that are used too early."""
    loads, many = crowded(monkeypatch), family(tmp_path, 3, shapes=MANY)
    merge.execute(planned(many, method, tmp_path / "cpu" / "out"))
    if fault == "room":
        done = Feed.done
        monkeypatch.setattr(Feed, "done", lambda feed, load, used: done(feed, load, Gone()))
    if fault == "slot":
        write = Writer.write
        monkeypatch.setattr(Writer, "write", lambda own, slot, then: (then(), write(own, slot, lambda: None)))
    piped(monkeypatch, planned(many, method, tmp_path / "piped" / "out", 8), [HostDevice(computes=0.003)])
    assert len(loads) >= len(MANY)
    assert (weights(tmp_path / "piped" / "out") == weights(tmp_path / "cpu" / "out")) == (not fault)


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
