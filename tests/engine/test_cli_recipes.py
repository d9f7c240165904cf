"""The command line for recipes: run, schema, methods, and seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run
from folders import family, read, state

from fastmerge import methods

RECIPE = """
method: task_arithmetic
base: base
models: {a: m0, b: {path: m1, weight: 0.5}}
tensors: [{match: "layers.*", parameters: {scale: 2}}]
outputs: {low: {scale: 0.1}, high: {scale: 0.9}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    family(tmp_path, 2)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def test_run(recipe: Path) -> None:
    """What --plan foretells is written: a folder per output, named in the summary, with its parameters in its card."""
    out = recipe.parent / "out"
    code, plan, error = run("run", recipe, "--plan", "--json")
    assert (code, error, out.exists()) == (0, "", False)
    code, report, error = run("run", recipe, "--out", out, "--dtype", "float32", "--json")
    assert (code, error) == (0, "")
    planned, done = json.loads(plan), json.loads(report)
    assert done["outputs"] == ["low", "high"]
    assert done["bytes_read"] == planned["bytes_read"]
    assert planned["outputs"] == {"low": {"scale": 0.1}, "high": {"scale": 0.9}}
    for name, scale in (("low", 0.1), ("high", 0.9)):
        assert set(read(out / name)) == set(state(0))
        card = (out / name / "README.md").read_text()
        params = json.loads(card.partition("```json")[2].partition("```")[0])
        assert params["params"]["scale"] == scale
        assert params["params"]["weights"] == {"a": 1.0, "b": 0.5}
        assert params["tensors"] == [{"match": ["layers.*"], "parameters": {"scale": 2}}]


def test_run_for_people(recipe: Path) -> None:
    """Every output is shown, before and after."""
    shown = run("run", recipe, "--plan")[1]
    assert "output low" in shown
    assert "scale 0.9" in shown
    code, shown, error = run("run", recipe, "--out", recipe.parent / "out")
    assert (code, error) == (0, "")
    assert "low, high" in shown


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        (RECIPE + "densty: 1\n", ["--out", "out"], "densty: there is no 'densty' here"),
        (RECIPE + "base: again\n", ["--out", "out"], "line 7, column 1: the key 'base' is there twice"),
        (RECIPE.replace("layers.*", "layer.*"), ["--out", "out"], "tensors[0]: 'layer.*' matches no tensor"),
        (RECIPE.replace("scale: 0.1", "scale: low"), ["--out", "out"], "outputs.low.scale is 'low'"),
        (RECIPE, [], "say where the result goes"),
        (RECIPE, ["--out", "out", "--dtype", "float"], "unknown dtype 'float'"),
        (RECIPE, ["--out", "base", "--overwrite"], "would overwrite the input"),
        ("merge_method: linear\nmodels: []\n", ["--out", "out"], "models is []"),
    ],
    ids=lambda value: value[-30:] if isinstance(value, str) else "",
)
def test_bad_recipes(text: str, arguments: list[str], said: str, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2, one error, no traceback, nothing written."""
    recipe.write_text(text)
    monkeypatch.chdir(recipe.parent)
    before = sorted(recipe.parent.rglob("*"))
    code, _, error = run("run", recipe.name, *arguments)
    assert code == 2
    assert error.count("error:") == 1, error
    assert said in error
    assert sorted(recipe.parent.rglob("*")) == before


def test_schema_and_methods() -> None:
    assert json.loads(run("schema")[1])["properties"]["method"]["enum"] == methods.names()
    assert [row["name"] for row in json.loads(run("methods", "--json")[1])] == methods.names()
    shown = run("methods")[1]
    for name in methods.names():
        assert name in shown
    one, two = run("methods", "ties")[1], run("methods", "slerp", "ties")[1]
    assert one in shown
    assert one in two
    assert [row["name"] for row in json.loads(run("methods", "slerp", "ties", "--json")[1])] == ["slerp", "ties"]
    code, printed, error = run("methods", "tie", "ties", "foo")
    assert (code, printed, error.count("error:")) == (2, "", 2)
    assert "'tie'; did you mean 'ties'?" in error


@pytest.mark.parametrize("method", ["linear", *(n for n in methods.names() if "seed" in methods.get(n).model_fields)])
def test_seed(method: str, recipe: Path) -> None:
    """--seed is the method's parameter; a method that draws nothing has none."""
    root = recipe.parent
    models = ["--base", root / "base", "--model", f"a={root / 'm0'}"]
    code, out, error = run("plan", method, *models, "--json", "-p", "seed=7")
    assert run("merge", method, *models, "--out", root / "out", "--seed", "7", "--json")[0] == code
    if code == 0:
        assert json.loads(out)["params"]["seed"] == 7
    else:
        assert f"{method} has no parameter 'seed'" in error
