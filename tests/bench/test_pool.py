"""The benchmark of pools: its tasks, what is merged, and its report."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import harness
from quality.domain import Size
from quality.pool import costs
from quality.pool import run as pool
from quality.pool.methods import METHODS
from quality.pool.paper import CLAIMS, COUNTS, NOISY, TABLE
from quality.pool.report import Numbers
from quality.pool.tasks import EVALUATED, Pool

TINY = Size(effort=0.004, tasks=5, test=36)


def test_twenty_tasks() -> None:
    tasks = Pool(Size(tasks=20, test=30)).tasks
    assert len(tasks) == 20
    for task in tasks.values():
        assert int(task.train[1].max()) < task.outputs
        assert len(task.test[0]) == 30
        assert not any(torch.equal(task.test[0][0], image) for image in task.train[0])


def test_from_training_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in processes of its own is kept, is not done again, and is reported in all forms."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(costs, "COUNTS", (2,))
    file = pool.run(quick=True, size=TINY)
    assert file is not None
    content = json.loads(file.read_text())
    found = {(row["part"], row["x"], row["method"]): row["scores"] for row in content["rows"]}
    assert {x for part, x, _ in found if part != NOISY} == {EVALUATED, 5}
    for part, x in {(part, x) for part, x, _ in found}:
        assert {*METHODS} <= {method for own, count, method in found if (own, count) == (part, x)}
    assert {len(scores) for (part, _, _), scores in found.items() if part == "relevant"} == {5}
    assert all(0 <= score <= 100 for scores in found.values() for (score,) in scores.values())
    text = file.with_suffix(".md").read_text()
    assert all(claim.text in text for claim in CLAIMS)
    lines = list(csv.DictReader(file.with_suffix(".csv").open()))
    assert len(lines) == sum(len(row["scores"]) for row in content["rows"])
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert {row["method"] for row in content["costs"]} >= {"FW soft", "AdaMerging"}
    kept = pool.place(NOISY, 0, TINY)
    before = kept.stat().st_mtime_ns
    monkeypatch.setattr(pool, "costs", lambda **_: content["costs"])
    assert pool.run(quick=True, size=TINY, seeds=[]) is not None
    assert kept.stat().st_mtime_ns == before


def test_the_change_is_from_the_smallest_pool() -> None:
    """Of a noisy model, from the pool without it."""
    rows = [
        {"part": part, "method": "TIES", "x": x, "scores": {"a": [score], "b": [score + 2]}}
        for part, x, score in (("irrelevant", 4, 70.0), ("irrelevant", 20, 60.0), (NOISY, 5, 69.0))
    ]
    numbers = Numbers({"rows": rows})
    assert numbers.change("irrelevant", "TIES") == [-10.0]
    assert numbers.change(NOISY, "TIES") == [-1.0]


def test_the_papers_numbers_are_whole() -> None:
    assert all(len(own) == len(COUNTS) for part in TABLE.values() for own in part.values())
    assert all(claim.method in METHODS for claim in CLAIMS)
