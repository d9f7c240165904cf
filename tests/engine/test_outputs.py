"""Several outputs of one reading, and parameters that differ between tensors: the bytes of merges made one by one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import family, near, read, state, write
from tensors import assert_same_bits

import fastmerge as fm
from fastmerge import methods, ops
from fastmerge.errors import InputError, MergeError
from fastmerge.recipe.layers import at_depth, depths

SHAPES = {
    "head.weight": (7, 8),
    "embed.weight": (700, 301),
    **{f"layers.{i}.{part}.weight": (33, 8) for i in range(3) for part in ("attn", "mlp")},
    "norm.weight": (131_073,),
}
DENSITY = {"a": {"density": 0.1}, "b": {"density": 0.3, "scale": 0.9}}
SWEEPS: list[tuple[str, dict[str, dict[str, Any]]]] = [
    *((name, DENSITY) for name in methods.names() if "density" in methods.get(name).model_fields),
    ("ties", {"a": {"scope": "global", "density": 0.1}, "b": {"preset": "paper", "density": 0.2}}),
    ("dare_linear", {"a": {"rescale": "l1", "seed": 3}, "b": {"density": [0.5, 0.7, 0.5]}}),
    ("linear", {"a": {"weights": [1, 2, 3]}, "b": {"normalize": False}}),
    (
        "task_arithmetic",
        {"a": {"scale": 0.3}, "b": {"scale": 0.7, "weights": [1, 2, 1]}, "c": {"modulators": True}},
    ),
    ("magmax", {"a": {"scale": 0.3}, "b": {}}),
    ("emr", {"a": {}, "b": {"rescale": "mean_of_means"}}),
]


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, dict[str, Path]]:
    base = state(0, torch.bfloat16, SHAPES)
    folders = {f"m{k}": write(tmp_path / f"m{k}", near(base, k + 1)) for k in range(3)}
    return write(tmp_path / "base", base), folders


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.parametrize(("method", "sweep"), SWEEPS, ids=[f"{method} {list(s['b'])}" for method, s in SWEEPS])
def test_each_output_is_a_merge_of_its_own(
    method: str, sweep: dict[str, dict[str, Any]], models: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    """Every file of every output, in small chunks as in large ones; and the inputs are read as for one of them."""
    base, folders = models
    once = fm.plan(method, base, folders, outputs=sweep).bytes_read
    for name, changes in sweep.items():
        assert fm.plan(method, base, folders, params=changes).bytes_read == once
        fm.merge(method, base, folders, tmp_path / "alone" / name, changes)
    for memory in ("1GiB", "24MiB"):
        seen: list[int] = []
        report = fm.merge(method, base, folders, tmp_path / memory, outputs=sweep, memory=memory, progress=seen.append)
        assert report.outputs == list(sweep)
        assert {path.name for path in (tmp_path / memory).iterdir()} == set(sweep)
        assert sum(seen) == once >= report.bytes_read  # less where a first pass is known from the merge before
        for name in sweep:
            one, many = content(tmp_path / "alone" / name), content(tmp_path / memory / name)
            assert set(one) == set(many)
            for file in one:
                if file not in ("README.md", "emr.json"):
                    assert one[file] == many[file], f"{name}/{file}"
            assert report.results.get(f"{name}/rescalers") == rescalers(tmp_path / "alone" / name)
            assert rescalers(tmp_path / memory / name) == rescalers(tmp_path / "alone" / name)


def rescalers(folder: Path) -> list[float] | None:
    file = folder / "emr.json"
    return json.loads(file.read_text())["rescalers"] if file.exists() else None


@pytest.mark.parametrize(
    ("method", "parameter"),
    [("magmax", "scale"), *((m, "density") for m in ("ties", "dare_ties", "della_linear", "breadcrumbs"))],
)
def test_parameters_by_tensor(
    method: str, parameter: str, models: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    """Each tensor is that of a whole merge with the parameters that hold for it; streamed, and in memory."""
    base, folders = models
    gradient = {"layers": [0.1, 0.5, 0.9]}
    tensors = [("*.mlp.*", {parameter: 0.75, "weights": {"m1": 3}}), (["norm.*", "layers.1.*"], {parameter: 0.25})]
    fm.merge(method, base, folders, tmp_path / "out", {parameter: gradient}, tensors=tensors)
    states = read(base), {name: read(folder) for name, folder in folders.items()}
    in_memory = fm.merge_state_dicts(method, *states, tensors=tensors, **{parameter: gradient}).state_dict
    placed = depths(list(SHAPES))
    for name, tensor in read(tmp_path / "out").items():
        value, weight = at_depth(gradient, placed[name]), 1
        if ".mlp." in name:
            value, weight = 0.75, 3
        if name == "norm.weight" or name.startswith("layers.1."):
            value = 0.25
        whole = {parameter: value, "weights": [1, weight, 1]}
        expected = fm.merge_state_dicts(method, *states, **whole).state_dict[name]
        assert_same_bits(tensor, expected, name)
        assert_same_bits(in_memory[name], expected, name)


def test_statistics_of_the_inputs_are_shared(
    models: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep over densities looks for all cuts of a tensor at once, and gives what each density gives alone."""
    base, folders = models
    searched: list[Any] = []
    search = ops.kth_magnitude
    monkeypatch.setattr(ops, "kth_magnitude", lambda *a, **k: searched.append(a) or search(*a, **k))
    sweep = {"a": {"density": 0.1}, "b": {"density": 0.5}, "c": {"density": 0.9}}
    tensors = [("*.mlp.*", {"density": 0.25}), ("norm.*", {"density": 0.75})]
    fm.merge("ties", base, folders, tmp_path / "out", outputs=sweep, tensors=tensors)
    assert len(searched) == len(SHAPES)
    for name, changes in sweep.items():
        fm.merge("ties", base, folders, tmp_path / "alone" / name, changes, tensors=tensors)
        assert content(tmp_path / "out" / name) == content(tmp_path / "alone" / name)


def test_an_artefact_among_outputs_gives_its_tasks(models: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    base, folders = models
    fm.merge("emr", base, folders, tmp_path / "alone")
    fm.merge("emr", base, folders, tmp_path / "many", outputs={"a": {}, "b": {"rescale": "mean_of_means"}})
    for out in ("alone", "many/a"):
        fm.task(tmp_path / out, "m1", tmp_path / "tasks" / out)
    assert read(tmp_path / "tasks" / "alone").keys() == SHAPES.keys()
    for name, tensor in read(tmp_path / "tasks" / "alone").items():
        assert_same_bits(read(tmp_path / "tasks" / "many" / "a")[name], tensor, name)


def test_nothing_is_left_of_outputs_that_fail(tmp_path: Path) -> None:
    """One output may let NaN through, another not: the merge as a whole stops."""
    base, folders = family(tmp_path, 2)
    broken = read(folders["m1"])
    broken["norm.weight"][3] = float("nan")
    shutil.rmtree(folders["m1"])
    write(folders["m1"], broken)
    allow, stop = {"nonfinite": "allow"}, {"nonfinite": "error"}
    with pytest.raises(MergeError, match=r"'norm\.weight'.*m1 \(1 of 8 values"):
        fm.merge("linear", base, folders, tmp_path / "out", outputs={"a": allow, "b": stop})
    assert not (tmp_path / "out").exists()
    fm.merge("linear", base, folders, tmp_path / "out", outputs={"a": allow, "b": allow})


def test_outputs_of_different_readings(tmp_path: Path) -> None:
    """Said, beside what else is wrong."""
    base, folders = family(tmp_path, 2)
    with pytest.raises(InputError) as caught:
        fm.plan("ties", base, folders, tmp_path, outputs={"a": {}, "b": {"scope": "global"}})
    assert caught.value.problems[0] == "outputs need different numbers of readings (a 1, b 4); merge them apart"
    assert "exists already" in caught.value.problems[-1]


@pytest.mark.parametrize(
    ("outputs", "tensors", "said"),
    [
        ({"a": {"scal": 1}, "b": {}}, [], ["outputs.a.scal: task_arithmetic has no parameter 'scal'"]),
        ({"a/b": {}}, [], ["output name 'a/b'"]),
        ({"a": {}, "b": {}}, [("*.mpl.*", {"scale": 1})], ["tensors[0]: '*.mpl.*' matches no tensor"]),
        ({"a": {"normalize": True}, "b": {}}, [("norm.*", {"weights": [1, -1]})], ["outputs.a: tensor 'norm.weight'"]),
    ],
    ids=["unknown", "name", "in all outputs", "in one output"],
)
def test_what_is_wrong_with_outputs_is_said_once(
    outputs: dict[str, Any], tensors: list[Any], said: list[str], tmp_path: Path
) -> None:
    base, folders = family(tmp_path, 2)
    with pytest.raises(InputError) as caught:
        fm.plan("task_arithmetic", base, folders, outputs=outputs, tensors=tensors)
    assert len(caught.value.problems) == len(said)
    for text, problem in zip(said, caught.value.problems, strict=True):
        assert problem.startswith(text)
