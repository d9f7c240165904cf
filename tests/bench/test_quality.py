"""The quality benchmark: its tasks, what is trained and merged, and its report."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import harness
from quality import report
from quality import run as quality
from quality.adapters import Adapters
from quality.claims import CLAIMS
from quality.domain import Domain, Family, Size, State
from quality.evaluate import _routed, elected, evaluate
from quality.images import Images
from quality.methods import rows
from quality.text import Text
from quality.training import train
from quality.two_stream import TwoStreams
from typer.testing import CliRunner

import fastmerge as fm
from fastmerge.cli import app
from fastmerge.cli.looking import BENCHMARKS

KINDS = [Images, Text, Adapters, TwoStreams]
TINY = Size(effort=0.01, tasks=3, test=20)


@pytest.fixture(scope="module")
def family() -> Family:
    """One with heads and one with frozen weights differ most from the plain case; this one is small, and has both."""
    return train(TwoStreams(TINY), 0)


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_images_are_as_many_as_promised() -> None:
    tasks = Images(Size()).tasks.values()
    assert len(tasks) >= 8
    assert len({task.outputs for task in tasks}) > 4
    assert all(len(task.test[1]) >= 2000 and int(task.test[1].max()) < task.outputs for task in tasks)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_model_for_every_task(kind: type[Domain]) -> None:
    """Outputs fit targets; what tasks share has one shape in all models; FR's presets find their matrices."""
    domain = kind(Size(test=5))
    shapes = []
    for task, data in domain.tasks.items():
        model = domain.model(task)
        *inputs, targets = data.test
        outputs = model(*inputs)
        assert outputs.shape[:-1] == targets.shape
        assert domain.loss(outputs, targets).isfinite()
        assert domain.score(outputs, targets).shape == targets.shape[:1]
        assert model.hidden(*inputs).mean(1).shape[0] == len(targets)
        shapes.append({name: t.shape for name, t in model.state_dict().items() if domain.merges(name)})
    assert len(shapes) >= 4
    assert all(own == shapes[0] for own in shapes)
    chosen = {"preset": "released-vision", "targets": domain.inner, **domain.filtering}
    base = {name: torch.zeros(shape) for name, shape in shapes[0].items()}
    moved = {name: torch.randn(shape) for name, shape in shapes[0].items()}
    merged = fm.merge_state_dicts("fr", base, {"a": moved, "b": moved}, **chosen).state_dict
    assert sum(bool(t.any()) for t in merged.values()) >= 8


def test_adapters_alone_are_trained() -> None:
    """The base's adapters are ones, and a fine-tune is made of adapters that are not."""
    family = train(Adapters(TINY), 0)
    assert family.base
    assert all(bool((tensor == 1).all()) for tensor in family.base.values())
    for state in family.models.values():
        assert state.keys() == family.base.keys()
        assert not same(state, family.base)
    assert not family.frozen.keys() & family.base.keys()


def test_multitask_models_are_one_but_for_their_heads(family: Family) -> None:
    first, *others = family.multitask.values()
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in family.base)
    assert first["head.weight"].shape != others[0]["head.weight"].shape


def test_elected_with_masks_and_rescalers_is_emr(family: Family) -> None:
    tasks = list(family.models)
    emr = fm.merge_state_dicts("emr", family.base, family.models, task_specific=family.domain.heads)
    ours = elected(family, tasks, mask=True, rescale=True)
    assert all(same(ours[task], emr.task(task)) for task in tasks)
    plain = elected(family, tasks)[tasks[0]]
    assert all(torch.allclose(plain[name], emr.state_dict[name], atol=1e-6) for name in family.base)


def test_a_perfect_router_is_an_oracle(family: Family) -> None:
    """Scores are of the samples in their order, whatever expert each is given."""
    free = fm.merge_state_dicts("free", family.base, family.models, task_specific=family.domain.heads)
    tasks = list(family.models)
    own = {task: family.scores(task, free.task(task)) for task in tasks}
    routed = _routed(family, free, {task: [task] * len(own[task]) for task in tasks})
    assert routed == {task: scores.mean().item() for task, scores in own.items()}
    rows = torch.tensor([7, 3])
    assert torch.equal(family.scores(tasks[0], free.task(tasks[0]), rows), own[tasks[0]][rows])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_row_can_be_merged_and_tested(kind: type[Domain]) -> None:
    domain = kind(Size(effort=0.002, tasks=2, test=8))
    wanted = rows(domain)
    found = evaluate(train(domain, 0), wanted, 0)
    assert len(found) == len(wanted)
    assert all(scores.keys() == domain.tasks.keys() for scores in found)
    assert all(math.isfinite(score) for scores in found for score in scores.values())


def test_claims_are_about_rows_that_are_there(family: Family) -> None:
    there = {(row.table, row.label, row.x) for row in rows(family.domain)}
    assert all(point in there for claim in CLAIMS for point in (*claim.better, *claim.than))


def test_from_training_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in processes of its own is kept, is not done again, and is reported in all forms."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(quality, "DOMAINS", {"adapters": "Adapters"})
    file = quality.run(quick=True, size=TINY)
    assert file is not None
    content = json.loads(file.read_text())
    assert content["seeds"] == [0]
    text = file.with_suffix(".md").read_text()
    assert all(row["label"] in text for row in content["rows"])
    lines = list(csv.DictReader(file.with_suffix(".csv").open()))
    assert len(lines) == sum(len(row["scores"]) for row in content["rows"])
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    kept = quality.place("adapters", 0, TINY)
    before = kept.stat().st_mtime_ns
    quality.run(quick=True, size=TINY)
    assert kept.stat().st_mtime_ns == before


def test_options_go_to_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "run.py").write_text(
        "import pathlib, sys; pathlib.Path('given').write_text(str(sys.argv[1:]))"
    )
    assert CliRunner().invoke(app, ["bench", "quality", "--quick", "--seed", "1"]).exit_code == 0
    assert (tmp_path / "given").read_text() == "['quality', '--quick', '--seed', '1']"


def test_the_command_knows_all_benchmarks() -> None:
    script = (Path(__file__).parents[2] / "bench" / "run.py").read_text()
    assert f'metavar="{"|".join(BENCHMARKS)}"' in script


def test_margins_and_intervals() -> None:
    """Less is better where the domain says so; an interval of three seeds is Student's; what shows, shows always."""
    about = {"metric": "bits", "more_is_better": False}
    methods = {"EMR": [1.0, 2.0, 3.0], "FREE, oracle router": [0.5, 1.0, 2.9]}
    found = [{"domain": "d", "table": "methods", "label": n, "x": None, "scores": {"t": s}} for n, s in methods.items()]
    numbers = report.Numbers({"domains": {"d": about}, "rows": found})
    mean, half = report.interval([1.0, 2.0, 3.0])
    assert (mean, round(half, 2)) == (2.0, 2.48)
    assert math.isnan(report.interval([1.0])[1])
    claim = next(claim for claim in CLAIMS if claim.text == "FREE is above EMR")
    margin = report.margins(claim, lambda better, than: numbers.gain("d", better, than))
    assert margin == pytest.approx([0.5, 1.0, 0.1])
    assert report._verdict(numbers, "d", claim).startswith("shows")
