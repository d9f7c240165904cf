"""Two tensors worked on at a time: the same bytes, and how both end where one fails."""

from __future__ import annotations

import errno
import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import content, family, near, state, write

import fastmerge as fm
from fastmerge.engine import merge, stream
from fastmerge.engine.works import _Merging
from fastmerge.engine.writer import Writer
from fastmerge.errors import InputError, MergeError
from fastmerge.formats.mapping import Inputs
from fastmerge.ops import BLOCK
from fastmerge.recipe.memory import LANES
from fastmerge.recipe.merge_plan import MergePlan
from fastmerge.recipe.plan import plan

SHAPES = {f"layers.{i}.weight": (400 + i, 301) for i in range(5)} | {"bias": (33,), "empty": (0, 4)}
METHODS: dict[str, dict[str, Any]] = {
    "ties": {"density": 0.3},
    "breadcrumbs": {"density": 0.4, "gamma": 0.05},
    "della": {"density": 0.5},
    "fr": {},
    "free": {"expert_density": 0.02},
    "slerp": {"t": 0.4},
    "tsvm": {},
    "iso_c": {},
    "iso_cts": {},
    "twin": {},
    "pcb": {},
    "sce": {"select_topk": 0.3},
    "nearswap": {"t": 0.01},
    "arcee_fusion": {},
    "model_stock": {},
    "dare_ties": {"density": 0.5, "rescale": "l1"},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    return family(tmp_path_factory.mktemp("checkpoints"), 3, shapes=SHAPES)


def planned(checkpoints: tuple[Path, dict[str, Path]], method: str, out: Path, lanes: int) -> MergePlan:
    base, models = checkpoints
    used = dict(list(models.items())[:1]) if method in ("slerp", "nearswap", "arcee_fusion") else models
    return replace(plan(method, base, used, out, METHODS.get(method)), chunk=BLOCK, lanes=lanes)


@pytest.fixture
def lanes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Thread and tensor of every piece that is read."""
    sources, seen = stream._sources, list[tuple[str, str]]()

    def told(piece: stream.Piece, inputs: Inputs) -> list[torch.Tensor]:
        seen.append((threading.current_thread().name.partition("_")[0], piece.work.sources[0].info.name))
        return sources(piece, inputs)

    monkeypatch.setattr(stream, "_sources", told)
    return seen


@pytest.mark.parametrize("method", METHODS)
def test_same_bytes(
    method: str, checkpoints: tuple[Path, dict[str, Path]], lanes: list[tuple[str, str]], tmp_path: Path
) -> None:
    for count in (1, 2, 3):
        merge.execute(planned(checkpoints, method, tmp_path / str(count) / "out", count))
        beside = {tensor for thread, tensor in lanes if thread == "fastmerge-lane"}
        main = {tensor for thread, tensor in lanes if thread != "fastmerge-lane"}
        assert (len(beside) >= count) == (count > 1)
        assert beside <= {*SHAPES}
        assert beside | main == {*SHAPES}
        lanes.clear()
    assert content(tmp_path / "1" / "out") == content(tmp_path / "2" / "out") == content(tmp_path / "3" / "out")


def test_what_is_only_streamed_has_one_lane(
    checkpoints: tuple[Path, dict[str, Path]], lanes: list[tuple[str, str]], tmp_path: Path
) -> None:
    fm.merge("emr", *checkpoints, tmp_path / "out")
    assert plan("emr", *checkpoints, tmp_path / "again").lanes == LANES
    assert len({thread for thread, _ in lanes}) == 1


@pytest.mark.parametrize("method", ["arcee_fusion", "nearswap", "sce", "tsvm"])
def test_lanes_share_the_threads_of_torch(
    method: str, checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But where the number may show in the result."""
    read, seen, before = stream._sources, set[tuple[bool, int]](), torch.get_num_threads()

    def told(piece: stream.Piece, inputs: Inputs) -> list[torch.Tensor]:
        torch.zeros(1 << 16).add_(1)  # a thread asks for its number at its first operation
        seen.add((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        return read(piece, inputs)

    monkeypatch.setattr(stream, "_sources", told)
    try:
        torch.set_num_threads(4)
        merge.execute(planned(checkpoints, method, tmp_path / "out", 2))
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    threads = 4 if method == "tsvm" else 2
    assert seen == {(True, threads), (False, threads)}


@pytest.mark.parametrize("tensor", list(SHAPES)[:4])
def test_an_error_ends_both(tensor: str, checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    """Whichever lane meets it, it is raised, no thread stays, and there is no output."""
    base, models = checkpoints
    bad = near(state(0, torch.bfloat16, SHAPES), 9)
    bad[tensor][3, 4] = torch.nan
    wrong = {**models, "bad": write(tmp_path / "bad", bad)}
    before = threading.active_count()
    with pytest.raises(MergeError, match=tensor):
        merge.execute(planned((base, wrong), "ties", tmp_path / "out", 2))
    assert threading.active_count() == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["a tensor of either lane", "the disk"])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_no_file_is_held_once_an_error_is_gone(
    method: str,
    where: str,
    checkpoints: tuple[Path, dict[str, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the collector, which comes when it likes."""
    begin, held = Inputs.__init__, list[weakref.ref[Inputs]]()
    monkeypatch.setattr(
        Inputs, "__init__", lambda self, *args, **more: (held.append(weakref.ref(self)), begin(self, *args, **more))[1]
    )

    def failing(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space")

    faults = [name for name in SHAPES if name.startswith("layers")] if where != "the disk" else ["bias"]
    if where == "the disk":
        monkeypatch.setattr(Writer, "_write", failing)
    gc.collect()
    gc.disable()
    try:
        for tensor in faults:
            run, made = _Merging.run, planned(checkpoints, method, tmp_path / tensor, 2)

            def wrong(self: _Merging, *given: Any, run: Any = run, tensor: str = tensor) -> None:
                if where != "the disk" and self.tensor.name == tensor:
                    raise MergeError("simulated")
                run(self, *given)

            with monkeypatch.context() as patch, suppress(MergeError):
                patch.setattr(_Merging, "run", wrong)
                merge.execute(made)
                pytest.fail("nothing has failed")
            assert not [own for ref in held if (own := ref()) is not None]
    finally:
        gc.enable()
    assert len(held) == len(faults)


def test_memory_for_one(checkpoints: tuple[Path, dict[str, Path]]) -> None:
    """Where a budget has no room for what two tensors hold, one at a time is worked on."""
    found: list[int] = []
    for kilo in range(3000, 9000, 50):
        with suppress(InputError):
            found.append(plan("free", *checkpoints, params=METHODS["free"], memory=f"{kilo}kB").lanes)
    assert found == sorted(found)
    assert {*found} == {1, LANES}


def sequences(elements: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    pieces = []
    for of_work in elements:
        work, start = stream.Work(sum(of_work), (), (), lambda *_: None), 0
        for own in of_work:
            pieces.append(stream.Piece(work, start, start + own))
            start += own
    return [[piece.stop - piece.start for piece in lane] for lane in stream._lanes(pieces, count)]


@pytest.mark.parametrize(
    ("elements", "count", "expected"),
    [
        ((), 2, [[]]),
        (((4,),), 2, [[4]]),
        (((4, 4), (3,), (3,), (9,)), 1, [[4, 4, 3, 3, 9]]),
        (((4, 4), (3,), (3,), (9,)), 2, [[4, 4], [3, 3, 9]]),
        (((1,), (1,), (1,), (1,)), 3, [[1, 1], [1], [1]]),
    ],
)
def test_sequences(elements: Sequence[Sequence[int]], count: int, expected: list[list[int]]) -> None:
    """A work's pieces stay together and in order, the works go where there is least."""
    assert sequences(elements, count) == expected


def test_threads_are_divided_among_lanes_alone() -> None:
    """Threads that begin meanwhile, a user's or another merge's, have as many of torch's as without."""

    def in_a_thread(call: Callable[[], int]) -> int:
        with ThreadPoolExecutor() as pool:
            return pool.submit(call).result()

    def divide() -> int:
        with stream.threads_each(2):
            return 100 * torch.get_num_threads() + in_a_thread(torch.get_num_threads)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(6)
        with stream.threads_each(3) as begin:
            assert torch.get_num_threads() == 2
            assert in_a_thread(torch.get_num_threads) == 6
            assert in_a_thread(divide) == 306
            with ThreadPoolExecutor(1, initializer=begin) as lane:
                assert lane.submit(torch.get_num_threads).result() == 2
        assert torch.get_num_threads() == in_a_thread(torch.get_num_threads) == 6
    finally:
        torch.set_num_threads(before)
