"""FR- and FREE-Merging from disk: the bytes of the merge in memory, folders of experts, memory, notes, the program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import live
import pytest
import torch
from command_line import run
from folders import content, near, read, state, write
from live import Net
from tensors import assert_same_bits

import fastmerge as fm
from fastmerge import dispatch
from fastmerge.errors import InputError
from fastmerge.formats.experts import ExpertsFolder

SHAPES = {
    "embed.weight": (300, 64),
    "layers.0.weight": (700, 513),
    "layers.1.weight": (400, 1500),
    "layers.1.experts.weight": (3, 90, 110),
    "layers.1.bias": (400,),
    "empty": (0, 4),
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("fr", {"coefficients": "tensor", "align": "layer"}),
    ("fr", {"convention": "released", "ratio": 0.4, "filter_1d": True}),
    ("free", {}),
    ("free", {"scope": "global", "expert_density": 0.02}),
    ("ties", {"prefilter": {"cutoff": 0.4}}),
    ("emr", {"prefilter": {"bins": 0.2}}),
]

Models = tuple[Path, dict[str, Path]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("models")
    base = state(0, torch.bfloat16, SHAPES)
    return write(root / "base", base), {f"m{k}": write(root / f"m{k}", near(base, k + 1)) for k in range(3)}


@pytest.mark.parametrize(("method", "params"), CASES)
def test_streamed_equals_in_memory(method: str, params: dict[str, Any], models: Models, tmp_path: Path) -> None:
    """Whatever the memory and the number of threads; and experts as well as the backbone."""
    native = dispatch.load("native")
    assert not isinstance(native, str)
    base, folders = models
    expected = fm.merge_state_dicts(method, read(base), {n: read(f) for n, f in folders.items()}, **params)
    before = native.threads()
    try:
        for threads, memory in ((1, "1GiB"), (2, "64MiB"), (3, "300MiB")):
            native.set_threads(threads)
            fm.merge(method, base, folders, tmp_path / f"out{threads}", params, memory=memory)
    finally:
        native.set_threads(before)
    first, *others = (content(tmp_path / f"out{threads}") for threads in (1, 2, 3))
    cards = {"README.md"}  # which name the folder
    for other in others:
        assert {n: b for n, b in other.items() if n not in cards} == {n: b for n, b in first.items() if n not in cards}
    for name, tensor in read(tmp_path / "out1").items():
        assert_same_bits(tensor, expected.state_dict[name], name)
    if method == "free":
        folder = ExpertsFolder(tmp_path / "out1")
        assert {task: own.scale for task, own in folder.record.experts.items()} == expected.stats["scales"]


@pytest.mark.parametrize("params", [{}, {"scope": "row", "expert_density": 0.2}, {"rescale": 0.5, "others": "base"}])
def test_experts_load_into_a_live_model(params: dict[str, Any], tmp_path: Path) -> None:
    """The backbone without a task; with one, backbone + μ · values, as in memory; tied embeddings are one tensor."""
    base, folders = live.family(tmp_path)
    fm.merge("free", base, folders, tmp_path / "out", params)
    states = {task: read(folder) for task, folder in folders.items()}
    expected = fm.merge_state_dicts("free", read(base), states, **params)
    model = fm.runtime.load(tmp_path / "out", Net(1))
    assert model.tasks == list(folders)
    for task in (None, *folders, None):
        model.set_task(task)
        wanted = expected.state_dict if task is None else expected.task(task)
        for name, tensor in live.stored(model.model).items():
            assert_same_bits(tensor, wanted[name], f"{task}: {name}")
    model.set_task({"math": 0.5, "law": 2.0})
    model.set_task(None)
    assert_same_bits(model.state_dict()["up.weight"], expected.state_dict["up.weight"], "the backbone again")


def test_heads_stay_with_their_tasks(tmp_path: Path) -> None:
    base = state(0) | {"head.weight": torch.zeros(2, 8, dtype=torch.bfloat16)}
    folders = {}
    for k in range(2):
        own = near(state(0), k + 1) | {"head.weight": torch.full((k + 2, 8), k + 1.0)}
        folders[f"m{k}"] = write(tmp_path / f"m{k}", own, {"model_type": "test", "labels": k})
    fm.merge("free", write(tmp_path / "base", base), folders, tmp_path / "out", task_specific=["head.*"])
    folder = ExpertsFolder(tmp_path / "out")
    assert folder.record.replaced == ["head.weight"]
    assert torch.equal(read(tmp_path / "out")["head.weight"], base["head.weight"])
    assert torch.equal(read(tmp_path / "out" / "tasks" / "m1")["head.weight"], torch.full((3, 8), 2.0))
    assert folder.config("m1") == {"model_type": "test", "labels": 1}


def test_an_expert_takes_little(tmp_path: Path) -> None:
    """Under 2.5 % of the dense bfloat16 model."""
    base = state(0, torch.bfloat16, {f"layers.{i}.weight": (700, 900) for i in range(3)})
    folders = {f"m{k}": write(tmp_path / f"m{k}", near(base, k + 1)) for k in range(2)}
    fm.merge("free", write(tmp_path / "base", base), folders, tmp_path / "out")
    dense = (tmp_path / "base" / "model.safetensors").stat().st_size
    for file in (tmp_path / "out" / "experts").iterdir():
        assert file.stat().st_size < 0.025 * dense
    plan = fm.plan("free", tmp_path / "base", folders, tmp_path / "other")
    written = sum(file.stat().st_size for file in (tmp_path / "out").rglob("*.safetensors"))
    assert plan.bytes_written == written


def test_several_outputs(models: Models, tmp_path: Path) -> None:
    """Each the very folder that it is alone, though one reading gives all."""
    outputs = {"low": {"cutoff": 0.1}, "global": {"scope": "tensor", "expert_density": 0.05}}
    fm.merge("free", *models, tmp_path / "out", outputs=outputs)
    for name, params in outputs.items():
        fm.merge("free", *models, tmp_path / name, params)
        assert content(tmp_path / "out" / name) == content(tmp_path / name)


@pytest.mark.parametrize("method", ["fr", "free"])
def test_another_cutoff_needs_no_first_reading(method: str, models: Models, tmp_path: Path) -> None:
    first = fm.merge(method, *models, tmp_path / "one", {"cutoff": 0.3})
    second = fm.merge(method, *models, tmp_path / "two", {"cutoff": 0.5})
    fm.merge(method, *models, tmp_path / "elsewhere" / "two", {"cutoff": 0.5})
    assert second.bytes_read < first.bytes_read
    assert second.bytes_read == sum(f.stat().st_size for f in _files(models)) - _headers(models)
    assert content(tmp_path / "two") == content(tmp_path / "elsewhere" / "two")


def _files(models: Models) -> list[Path]:
    return [folder / "model.safetensors" for folder in (models[0], *models[1].values())]


def _headers(models: Models) -> int:
    return sum(8 + int.from_bytes(file.read_bytes()[:8], "little") for file in _files(models))


def test_only_what_is_filtered_is_measured(models: Models, tmp_path: Path) -> None:
    """The first reading leaves out what does not count, and the plan knows."""
    found = []
    for params in ({}, {"targets": "layers.0.*"}, {"coefficients": "sum"}):
        out = tmp_path / str(len(found)) / "out"
        found.append(fm.merge("fr", *models, out, params).bytes_read)
        assert found[-1] == fm.plan("fr", *models, tmp_path / "out", params).bytes_read
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    ("method", "params", "tensor"),
    [
        ("fr", {"cutoff": 0.9}, "layers.0.weight"),
        ("free", {"cutoff": 0.9}, "layers.0.weight"),
        ("ties", {"prefilter": {}}, "layers.1.weight"),
    ],
)
def test_too_little_memory(method: str, params: dict[str, Any], tensor: str, models: Models, tmp_path: Path) -> None:
    """Is told before any work, with the tensor that needs more."""
    with pytest.raises(InputError, match=rf"needs at least .* of them for the whole of '{tensor}'"):
        fm.plan(method, *models, tmp_path / "out", params, memory="5MB")


@pytest.mark.parametrize(
    ("method", "params"), [("fr", {"convention": "released", "ratio": 0.9}), ("ties", {"prefilter": {"cutoff": 0.01}})]
)
def test_a_filter_that_hardly_filters_is_noted(method: str, params: dict[str, Any], tmp_path: Path) -> None:
    """With shapes, shares and counts, in the plan and in the report."""
    base = state(0, torch.bfloat16, {"a.weight": (64, 64), "b.weight": (64, 64), "c.weight": (20, 200)})
    models = {"m": write(tmp_path / "m", near(base, 1))}
    plan = fm.plan(method, write(tmp_path / "base", base), models, tmp_path / "out", params)
    (note,) = (note for note in plan.notes if "identity" in note)
    assert "64 × 64 (2 tensors, " in note
    assert ("20 × 200" in note) == (method == "ties")
    assert note in fm.merge(method, tmp_path / "base", models, tmp_path / "out", params).notes
    quiet = {"prefilter": {"cutoff": 0.5}} if method == "ties" else {"cutoff": 0.5}
    assert not fm.plan(method, tmp_path / "base", models, tmp_path / "new", quiet).notes


@pytest.mark.parametrize(
    ("scope", "columns", "empty"),
    [
        ("row", (64, 200, 33), 2),
        ("row", (99, 100, 101), 1),
        ("row", (100, 200, 300), 0),
        ("row", (64, 1, 99), 3),
        ("tensor", (64, 1, 99), 0),
    ],
)
def test_experts_that_are_empty_are_told(scope: str, columns: tuple[int, ...], empty: int, tmp_path: Path) -> None:
    """Rows have no hundredth where they are short: that is noted, and refused where no expert has an element."""
    shapes = {f"layers.{i}.weight": (7, own) for i, own in enumerate(columns)}
    base = state(0, torch.bfloat16, shapes)
    models, params = {"m": write(tmp_path / "m", near(base, 1))}, {"scope": scope, "cutoff": 0.9}
    given = write(tmp_path / "base", base), models, tmp_path / "out", params
    if empty == len(shapes):
        with pytest.raises(InputError, match=r"rows of fewer than 100 elements .* of any tensor; .*scope=tensor"):
            fm.merge("free", *given)
        return
    notes = [note for note in fm.plan("free", *given).notes if "rows" in note]
    assert [f"are empty of {empty} of 3 tensors" in note for note in notes] == [True] * bool(empty)
    assert {*notes} <= {*fm.merge("free", *given).notes}
    folder = ExpertsFolder(tmp_path / "out")
    found = [parts[2].numel for parts in folder.experts["m"].values()]
    assert found.count(0) + len(shapes) - len(found) == empty


RECIPE = """
method: fr
base: base
models: {m0: {path: m0, coefficient: 0.5}, m1: {path: m1, coefficient: 0.25}}
parameters: {cutoff: {layers: [0.2, 0.4]}}
tensors: [{match: "layers.0*", parameters: {cutoff: 0.6, scale: 0.5}}]
"""


def test_recipes(models: Models, tmp_path: Path) -> None:
    """Coefficients by model, cutoffs by depth and by pattern."""
    file = models[0].parent / "recipe.yaml"
    file.write_text(RECIPE)
    fm.run(file, tmp_path / "out")
    base, states = read(models[0]), {name: read(models[1][name]) for name in ("m0", "m1")}
    merged = read(tmp_path / "out")
    for name, cutoff, scale in (("layers.0.weight", 0.6, 0.5), ("layers.1.weight", 0.4, 1.0)):
        own = [state[name] for state in states.values()]
        expected = fm.ops.highpass_merge(base[name], own, [0.5, 0.25], cutoff=cutoff, scale=scale).merged
        assert_same_bits(merged[name], expected, name)


def test_the_command_line(models: Models, tmp_path: Path) -> None:
    """Patterns by commas, numbers by model, and a filter's parameters after a dot."""
    named = [part for name, folder in models[1].items() for part in ("--model", f"{name}={folder}")]
    given = ["--base", models[0], *named, "--json"]
    options = ["-p", "coefficients=m0=0.5,m1=0.25,m2=1", "-p", "targets=layers.0*,embed*", "-p", "bins=0.3"]
    code, said, error = run("merge", "free", *given, "--out", tmp_path / "out", *options)
    assert (code, error) == (0, "")
    assert json.loads(said)["results"]["coefficients"] == [0.5, 0.25, 1.0]
    code, said, _ = run("merge", "ties", *given, "--out", tmp_path / "ties", "-p", "prefilter.cutoff=0.4")
    assert code == 0
    base, states = read(models[0]), {name: read(folder) for name, folder in models[1].items()}
    expected = fm.merge_state_dicts("ties", base, states, prefilter={"cutoff": 0.4}).state_dict
    for name, tensor in read(tmp_path / "ties").items():
        assert_same_bits(tensor, expected[name], name)
    code, said, _ = run("plan", "ties", *given, "-p", "prefilter.cutoff=0.4", "-p", "prefilter=0.4")
    assert code == 2
    assert "prefilter is '0.4'" in said or "leave one out" in said
