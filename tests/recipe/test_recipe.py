"""Recipes: what they mean as a plan, where their paths lead, what is wrong with them, and their JSON schema."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoints import write_folder
from hypothesis import given
from hypothesis import strategies as st

import fastmerge as fm
from fastmerge import methods
from fastmerge.errors import InputError
from fastmerge.recipe.json_schema import method_table, recipe_schema

NAMES = ["embed.weight", *(f"layers.{i}.{part}.weight" for i in range(3) for part in ("attn", "mlp")), "head.weight"]
RECIPE = """
method: task_arithmetic
base: models/base
models:
  math: ./models/math
  code: {path: models/code, weight: 0.5, rename: {"_orig_mod.": ""}}
parameters: {scale: 2.0}
tensors:
  - match: "*.mlp.*"
    parameters: {scale: 0.5}
    models: {code: {weight: 0.7}}
  - match: [embed.weight, head.*]
    parameters: {weights: {layers: [1, 3]}, scale: 3}
    models: {math: {weight: 9}}
outputs:
  one: {}
  two: {scale: {layers: [0, 1]}, weights: {math: 4}}
dtype: float32
memory: 64MiB
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = dict.fromkeys(NAMES, ("BF16", (4, 2)))
    for name in ("base", "math"):
        write_folder(tmp_path / "models" / name, tensors)
    write_folder(tmp_path / "models" / "code", {f"_orig_mod.{n}": spec for n, spec in tensors.items()})
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def content() -> dict[str, Any]:
    result: dict[str, Any] = yaml.safe_load(RECIPE)
    return result


def problems(recipe: dict[str, Any]) -> list[str]:
    try:
        fm.Recipe(**recipe)
    except InputError as error:
        return error.problems
    return []


# What a recipe means


def test_parameters_by_model_tensor_and_output(folder: Path) -> None:
    """A later entry wins: parameters, a model's own, those of the output, then tensors in order."""
    plan = fm.Recipe.read(folder / "recipe.yaml").plan()
    found = {
        output.name: {
            name: (method.scale, method.weights)
            for name in ("embed.weight", "layers.1.attn.weight", "layers.1.mlp.weight", "head.weight")
            for method in [output.parameters.of(name)]
        }
        for output in plan.outputs
    }
    assert found == {
        "one": {
            "embed.weight": (3.0, {"math": 9.0, "code": 1.0}),
            "layers.1.attn.weight": (2.0, {"math": 1.0, "code": 0.5}),
            "layers.1.mlp.weight": (0.5, {"math": 1.0, "code": 0.7}),
            "head.weight": (3.0, {"math": 9.0, "code": 3.0}),
        },
        "two": {
            "embed.weight": (3.0, {"math": 9.0, "code": 1.0}),
            "layers.1.attn.weight": (0.5, {"math": 4.0, "code": 0.5}),
            "layers.1.mlp.weight": (0.5, {"math": 4.0, "code": 0.7}),
            "head.weight": (3.0, {"math": 9.0, "code": 3.0}),
        },
    }
    assert (plan.names, plan.dtype, plan.memory) == (["math", "code"], "F32", 64 << 20)


def test_a_recipe_from_python_is_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapping, or a Recipe, whose folders are relative to the working directory."""
    monkeypatch.chdir(folder)
    one, two = fm.Recipe(**content()).plan(), fm.Recipe.read("recipe.yaml").plan()
    assert one.summary() | {"models": {}} == two.summary() | {"models": {}}
    made = content() | {"base": Path("models/base"), "models": {"math": folder / "models" / "math"}}
    assert fm.Recipe(**made | {"tensors": [], "outputs": {}}).plan().names == ["math"]


def test_folders_are_relative_to_the_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From wherever it is run; a name that is no folder beside it is the Hub's."""
    monkeypatch.chdir("/")
    recipe = fm.Recipe.read(folder / "recipe.yaml")
    assert {m.path for m in recipe.plan().models} == {folder / "models" / name for name in ("math", "code")}
    assert recipe._path("org/model") == "org/model"
    assert recipe._path("models/other") == str(folder / "models" / "other")
    assert recipe._path("/elsewhere") == "/elsewhere"
    assert recipe._path("~/elsewhere") == "~/elsewhere"


def test_what_is_given_beside_the_recipe_goes_first(folder: Path) -> None:
    plan = fm.Recipe.read(folder / "recipe.yaml").plan(folder / "out", dtype="float16", memory="32MiB")
    assert (plan.dtype, plan.memory, plan.out) == ("F16", 32 << 20, folder / "out")


def test_empty_parts_are_left_out(folder: Path) -> None:
    (folder / "recipe.yaml").write_text("method: linear\nmodels:\n  math: models/math\nparameters:\ntensors:\n")
    assert fm.Recipe.read(folder / "recipe.yaml").plan().names == ["math"]


# What is wrong with one


def changed(*path: str | int, value: Any) -> dict[str, Any]:
    recipe = content()
    inner: Any = recipe
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    return recipe


WRONG: list[tuple[dict[str, Any], str]] = [
    (changed("method", value="task_arithmatic"), "method: unknown method 'task_arithmatic'; did you mean"),
    (changed("methd", value="emr"), "methd: there is no 'methd' here; did you mean 'method'?"),
    ({"method": "linear", "models": {}}, "models is {}; it should have at least 1 item"),
    ({"models": {"math": "x"}}, "method is needed"),
    (changed("models", "math", value=5), "models.math is 5; it should be a path, or a mapping with a path"),
    (changed("models", "code", "wieght", value=1), "models.code.wieght: a model has no 'wieght' of its own; did you"),
    (changed("models", "code", "weight", value="x"), "models.code.weight is 'x'; expected numbers"),
    (changed("models", "code", "weight", value=[1, 2]), "models.code.weight is [1, 2]; it should be one number"),
    (changed("models", "code", "weight", value={"layers": [1]}), "models.code.weight.layers has 1 values"),
    (changed("models", "code", "rename", value=3), "models.code.rename is 3; it should be a mapping"),
    (changed("models", "code", value={"weight": 1}), "models.code.path is needed"),
    (changed("parameters", "scal", value=1), "parameters.scal: task_arithmetic has no parameter 'scal'; did you mean"),
    (changed("parameters", "scale", value="big"), "parameters.scale is 'big'; it should be a valid number"),
    (changed("parameters", "nonfinite", value="alow"), "parameters.nonfinite is 'alow'; it should be"),
    (changed("parameters", "normalize", value={"layers": [0, 1]}), "parameters.normalize holds for the whole model"),
    (changed("parameters", "weights", value={"mth": 1}), "parameters.weights.mth is of no model; did you mean 'math'"),
    (changed("parameters", value=[1]), "parameters is [1]; it should be a mapping"),
    (changed("tensors", value=3), "tensors is 3; it should be a valid list"),
    (changed("tensors", 1, "mach", value="*"), "tensors[1].mach: there is no 'mach' here; did you mean 'match'?"),
    (changed("tensors", 0, value={"parameters": {}}), "tensors[0].match is needed"),
    (changed("tensors", 0, "parameters", "scal", value=1), "tensors[0].parameters.scal: task_arithmetic has no"),
    (changed("tensors", 1, "parameters", "normalize", value=True), "tensors[1].parameters.normalize holds for the"),
    (changed("tensors", 0, "models", "cod", value={}), "tensors[0].models.cod: there is no model 'cod'; did you mean"),
    (changed("tensors", 0, "models", "code", "weight", value=None), "tensors[0].models.code.weight is None"),
    (changed("outputs", "one", value={"scal": 1}), "outputs.one.scal: task_arithmetic has no parameter 'scal'"),
    (changed("outputs", "two", "scale", value={"layers": [0, "x"]}), "outputs.two.scale.layers is [0, 'x']"),
    (changed("dtype", value="bfloat"), "dtype is 'bfloat'; it should be 'bfloat16', 'float16'"),
    (changed("memory", value=[1]), "memory is [1]"),
    (changed("task_specific", value=7), "task_specific is 7"),
    (changed("seed", value=1), "seed: task_arithmetic draws nothing at random"),
    (changed("merge_method", value="ties"), "this is a configuration of mergekit's, and no recipe"),
]


@pytest.mark.parametrize(("recipe", "said"), WRONG, ids=[said[:40] for _, said in WRONG])
def test_every_problem_is_named_by_its_path(recipe: dict[str, Any], said: str) -> None:
    (problem,) = problems(recipe)
    assert said in problem


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    """Of structure, of parameters and of folders together; from a file, what is its own begins with its name."""
    broken = [("methd", 1), ("dtype", 2), ("parameters", {"scal": 1, "scale": "x"}), ("outputs", {"a": {"b": 1}})]
    file = tmp_path / "broken.yaml"
    file.write_text(yaml.safe_dump(content() | dict(broken)))
    with pytest.raises(InputError) as caught:
        fm.Recipe.read(file)
    assert [problem.startswith(f"{file}: ") for problem in caught.value.problems] == [True] * 5 + [False] * 3


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("tensors", 0, "match"), "*.mpl.*", "tensors[0]: '*.mpl.*' matches no tensor that is merged"),
        (("tensors", 1, "match"), ["head.*", "haed.weight"], "'haed.weight' matches no tensor that is merged; did you"),
        (("task_specific",), ["classifier.*"], "'classifier.*' matches no tensor of any model"),
        (("models", "math"), "models/maths", "models/maths does not exist"),
        (("models", "base"), "models/math", "model name 'base'"),
        (("outputs", "../x"), {}, "output name '../x'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_only_the_checkpoints_tell(folder: Path, path: Any, value: Any, said: str) -> None:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(changed(*path, value=value), sort_keys=False))
    with pytest.raises(InputError) as caught:
        fm.Recipe.read(folder / "recipe.yaml").plan()
    assert any(said in problem for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("method", "parameters", "said"),
    [
        ("ties", {"density": 1.5}, "parameters.density is 1.5; expected numbers from 0 to 1"),
        ("breadcrumbs", {"density": 0.9, "gamma": 0.2}, "density 0.9 and gamma 0.2 of math make more than 1"),
        ("breadcrumbs", {"density": {"layers": [0.1, 0.95]}, "gamma": 0.1}, "tensor 'layers.2.attn.weight': breadcr"),
        ("della", {"density": 0.3, "epsilon": 0.4}, "epsilon 0.4 of math is too large"),
        ("ties", {"scope": "global", "density": {"layers": [0.1, 0.2]}}, "parameters.density holds for the whole"),
    ],
)
def test_parameters_that_cannot_be_meant(method: str, parameters: Any, said: str, folder: Path) -> None:
    """Fractions out of range alone, together, and in a single layer."""
    recipe = {"method": method, "base": folder / "models" / "base", "models": {"math": folder / "models" / "math"}}
    with pytest.raises(InputError) as caught:
        fm.Recipe(**recipe, parameters=parameters).plan()
    (problem,) = caught.value.problems
    assert said in problem


def test_what_to_do_is_said_in_the_words_of_recipes(folder: Path) -> None:
    recipe = content() | {"base": folder / "models" / "base", "tensors": []}
    recipe["models"] = {name: folder / "models" / name for name in ("math", "code")}
    write_folder(folder / "models" / "more", dict.fromkeys([*NAMES, "score.weight"], ("BF16", (4, 2))))
    recipe["models"]["more"] = folder / "models" / "more"
    with pytest.raises(InputError) as caught:
        fm.Recipe(**recipe).plan()
    told = "\n".join(caught.value.problems)
    assert 'give models.code rename: {"_orig_mod.": ""}' in told
    assert "put 'score.*' in task_specific" in told
    assert "--" not in told


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.sampled_from(["math", "code", "x", "*", "1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["layers", "math", "weight", "scale", "path", "match", "x"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
PLACES = [
    *((key,) for key in fm.Recipe.model_fields),
    ("models", "code"),
    ("models", "code", "weight"),
    ("parameters", "scale"),
    ("parameters", "weights"),
    ("tensors", 0),
    ("tensors", 0, "models"),
    ("tensors", 1, "parameters"),
    ("outputs", "two"),
    ("outputs", "two", "scale"),
]


@given(st.sampled_from(PLACES), JSON)
def test_whatever_stands_there_is_accepted_or_reported(path: tuple[Any, ...], value: Any) -> None:
    """No other exception, and a problem names the place, or one inside it."""
    for problem in problems(changed(*path, value=value)):
        assert problem.startswith((str(path[0]), "models", "tensors", "seed", "parameters", "outputs"))


# For editors


@functools.cache
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(recipe_schema())
    return jsonschema.Draft202012Validator(recipe_schema())


def schema_accepts(recipe: dict[str, Any]) -> bool:
    return validator().is_valid(recipe)


RIGHT: list[dict[str, Any]] = [
    content(),
    changed("models", "code", "weight", value={"layers": [0, 1]}),
    changed("parameters", "weights", value=[1, 2]),
    changed("parameters", "weights", value={"math": {"layers": [0, 1]}, "code": 3}),
    changed("task_specific", value="classifier.*"),
    changed("memory", value=1 << 30),
    changed("tensors", 0, "match", value=["a", "b"]),
]


@pytest.mark.parametrize("recipe", RIGHT)
def test_the_schema_accepts_what_is_right(recipe: dict[str, Any]) -> None:
    assert problems(recipe) == []
    assert schema_accepts(recipe)


def test_the_schema_refuses_what_is_wrong() -> None:
    """All that needs no other part of the recipe to be seen."""
    beyond = ("is of no model", "there is no model", "draws nothing")
    for recipe, said in WRONG:
        assert schema_accepts(recipe) == any(text in said for text in beyond), said


@pytest.mark.parametrize("method", methods.names())
def test_every_method_has_its_parameters_in_schema_and_table(method: str) -> None:
    """With a description and a default each; a recipe with all defaults is accepted by schema and parser."""
    row = next(row for row in method_table() if row["name"] == method)
    assert row["does"]
    assert row["source"]
    assert all(parameter["about"] and parameter["form"] for parameter in row["parameters"].values())
    fields = methods.get(method).model_fields
    assert set(row["parameters"]) == set(fields)
    given = {name: p["default"] for name, p in row["parameters"].items() if p["default"] is not None}
    recipe = {"method": method, "base": "b", "models": {"m": "x"}, "parameters": given}
    assert problems(recipe) == []
    assert schema_accepts(recipe)
    assert not schema_accepts(recipe | {"parameters": given | {"nonsense": 1}})


@pytest.mark.parametrize("method", methods.names())
def test_ranges_in_the_schema_are_the_methods_own(method: str) -> None:
    """A number out of a parameter's range is refused by both, anywhere."""
    sections: list[Callable[[str, Any], dict[str, Any]]] = [
        lambda name, value: {"parameters": {name: value}},
        lambda name, value: {"outputs": {"o": {name: value}}},
        lambda name, value: {"parameters": {name: {"layers": [value, value]}}},
    ]
    properties = recipe_schema()["$defs"][method]["whole"]["properties"]
    for name in methods.get(method).model_fields:
        for value in (-1e12, -1, 0, 0.3, 1, 1.5, 1e12, "x", True):
            for section in sections:
                recipe = {"method": method, "base": "b", "models": {"m": "x"}} | copy.deepcopy(section(name, value))
                if not lenient(properties[name], value):
                    assert schema_accepts(recipe) == (problems(recipe) == []), recipe


def lenient(schema: dict[str, Any], value: Any) -> bool:
    """Where pydantic reads more than the schema says: true as 1 and 0 as false."""
    types = json.dumps(schema)
    return ('"boolean"' in types and value in (0, 1)) or (value is True and '"boolean"' not in types)
