"""Small tensors that share launches: which calls are made together, in what order, and the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import content, family, near, state, write
from host_device import HostDevice

from fastmerge import dispatch
from fastmerge.batching import Result, at_once, batch, line, waiting
from fastmerge.engine import merge, pipeline
from fastmerge.engine.identity import backend
from fastmerge.engine.stream import Target, Work
from fastmerge.errors import MergeError
from fastmerge.formats.layout import Place
from fastmerge.ops import BLOCK
from fastmerge.recipe.merge_plan import MergePlan
from fastmerge.recipe.plan import plan

LAYERS = 6
SHAPES = {f"layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in (("up", (40, 30)), ("norm", (40,)))}
SHAPES |= {"embed": (300, 500), "empty": (0, 3)}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {}),
    "task arithmetic": ("task_arithmetic", {"scale": 0.4}),
    "emr": ("emr", {}),
    "dare": ("dare_linear", {"density": 0.5}),
    "ties, which trims": ("ties", {"density": 0.3}),
    "what is masked": ("task_arithmetic", {"modulators": True}),
    "what is filtered first": ("task_arithmetic", {"prefilter": {"cutoff": 0.3}}),
    "experts": ("free", {"expert_density": 0.05}),
    "whole rows": ("della", {"density": 0.5}),
}
TOGETHER = {"linear", "task arithmetic", "emr", "dare", "ties, which trims"}


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """The CPU's backend does many tensors at once, and tells which op and how many."""
    module, calls = dispatch.load(backend("cpu")), list[tuple[str, int]]()

    def of(op: str) -> Callable[[Sequence[tuple[Any, ...]]], Callable[[], list[int]] | None]:
        alone = getattr(module, op)

        def made(jobs: Sequence[tuple[Any, ...]]) -> Callable[[], list[int]] | None:
            calls.append((op, len(jobs)))
            results = [alone(*job) for job in jobs]
            return None if op == "elect" else lambda: results

        return made

    for op in ("combine", "elect", "delta_sum"):
        monkeypatch.setattr(module, f"{op}_many", of(op), raising=False)
    dispatch.chosen.cache_clear()
    yield calls
    dispatch.chosen.cache_clear()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    return family(tmp_path_factory.mktemp("checkpoints"), 3, shapes=SHAPES)


def planned(checkpoints: tuple[Path, dict[str, Path]], name: str, out: Path) -> MergePlan:
    method, parameters = METHODS[name]
    return replace(plan(method, *checkpoints, out, parameters, device="cpu"), chunk=2 * BLOCK)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("fails", [set(), {2}], ids=["", "out of memory"])
def test_same_bytes(
    name: str,
    fails: set[int],
    checkpoints: tuple[Path, dict[str, Path]],
    many: list[tuple[str, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merge.execute(planned(checkpoints, name, tmp_path / "cpu" / "out"))
    assert not many, "nothing waits on the CPU"
    monkeypatch.setattr(merge, "open_devices", lambda _: [HostDevice(fails=fails)])
    merge.execute(planned(checkpoints, name, tmp_path / "piped" / "out"))
    assert content(tmp_path / "piped" / "out") == content(tmp_path / "cpu" / "out")
    if name in TOGETHER and not fails:
        assert max(count for _, count in many) >= 2 * LAYERS
    if name in TOGETHER and fails:
        assert many
        assert max(count for _, count in many) == 1, "what had no room is tried tensor by tensor"


def test_nonfinite_of_one_of_many_is_named(
    checkpoints: tuple[Path, dict[str, Path]],
    many: list[tuple[str, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, models = checkpoints
    bad = near(state(0, torch.bfloat16, SHAPES), 9)
    bad["layers.3.norm"][3] = torch.nan
    wrong = {**models, "bad": write(tmp_path / "bad", bad)}
    monkeypatch.setattr(merge, "open_devices", lambda _: [HostDevice()])
    with pytest.raises(MergeError, match=r"layers\.3\.norm.*bad|bad.*layers\.3\.norm"):
        merge.execute(planned((base, wrong), "task arithmetic", tmp_path / "out"))
    assert many
    assert not (tmp_path / "out").exists()


def sized(*sizes: int) -> list[Work]:
    return [Work(size, (), (), lambda *_: None) for size in sizes]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((), []),
        ((0,), [1]),
        ((0, 0, 5), [3]),
        ((10, 0, 1), [1, 2]),  # more than a chunk is alone
        ((4, 4, 1, 8), [2, 1, 1]),
        ((4, 4), [2]),
        ((9, 3, 3, 3), [1, 2, 1]),
        ((1,) * 20, [8, 8, 4]),
        ((0,) * 300, [256, 44]),
    ],
)
def test_groups(sizes: tuple[int, ...], expected: list[int]) -> None:
    """In order, no more than a chunk together."""
    works = sized(*sizes)
    groups = pipeline.groups_of(works, 8)
    assert [work for group in groups for work in group] == works
    assert [len(group) for group in groups] == expected


def test_files_fill_abreast() -> None:
    """After any of the groups each file has about the same part of what it will have, and each file's stay in order."""
    sizes = {"a": [4] * 10, "b": [8, 8], "": [5, 5, 5]}  # elements by file, of which one kind writes nothing

    def group(file: str, n: int) -> list[Work]:
        places = (Place(file, 0, 2 * n),)
        return [Work(n, (), (Target(places, "BF16"),) if file else (), lambda *_: None)]

    groups = [group(file, n) for file, own in sizes.items() for n in own]
    ordered = pipeline.abreast(groups)
    assert sorted(map(id, ordered)) == sorted(map(id, groups))
    written = dict.fromkeys("ab", 0)
    for one in ordered:
        for target in one[0].targets:
            written[target.places[0].file] += one[0].numel
            parts = [n / sum(sizes[file]) for file, n in written.items()]
            assert abs(parts[0] - parts[1]) <= 0.5
    for file in sizes:
        own = [one for one in groups if [t.places[0].file for t in one[0].targets] == ([file] if file else [])]
        assert [one for one in ordered if any(one is other for other in own)] == own


class Recorded:
    """A backend's function, alone and of many, that says what it was called with."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log, self.waits = name, log, 0

    def alone(self, x: int) -> int:
        self.log.append(f"{self.name} {x}")
        return x

    def many(self, jobs: Sequence[tuple[int]]) -> Callable[[], list[int]]:
        self.log.append(f"{self.name} {[x for (x,) in jobs]}")

        def waited() -> list[int]:
            self.waits += 1
            return [x for (x,) in jobs]

        return waited


def call(of: Recorded, x: int, together: bool = True) -> int:
    """What an op does."""
    own = line.get()
    kernel = of.alone if own is None else own.kernel(of.alone, of.many if together else None)
    return int(kernel(x))


def test_what_waits_for_what() -> None:
    log, told = list[str](), list[Result]()
    a, b = Recorded("a", log), Recorded("b", log)
    with batch():
        assert call(a, 1) == 1, "nothing waits but where it may"
        for x in (2, 3):
            with waiting(told.append):
                assert call(a, x) == 0
        with waiting(told.append):
            assert call(b, 4) == 0
            assert call(b, 5) == 0, "after what it may need"
            assert call(a, 6, together=False) == 6, "at once, after what it may need"
            assert call(a, 7) == 0
            with at_once():
                assert call(a, 8) == 8, "for anything to look at"
    assert log == ["a 1", "a [2, 3]", "b [4]", "b [5]", "a 6", "a [7]", "a 8"]
    assert a.waits == b.waits == 0, "what calls return may still be on its way"
    assert [result() for result in told] == [2, 3, 4, 5, 7]
    assert (a.waits, b.waits) == (2, 2), "once for all that were called together"
    with waiting(told.append):
        assert call(a, 9) == 9, "outside a batch"


def test_an_error_drops_what_waits() -> None:
    log = list[str]()

    def fail() -> None:
        with batch(), waiting(lambda _: None):
            call(Recorded("a", log), 1)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert not log
    assert line.get() is None
