"""Which parameters hold for which tensor, and what is wrong with them before any work."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from fastmerge.errors import InputError
from fastmerge.methods import get, names
from fastmerge.methods._declaration import Finite, Method, of_models, per_model
from fastmerge.recipe.layers import at_depth, depths
from fastmerge.recipe.parameters import Parameters, declare

MODELS = ("math", "code", "law")
TENSORS = ("embed.weight", *(f"layers.{i}.{part}.weight" for i in range(3) for part in ("attn", "mlp")), "head.weight")


class Toy(Method):
    """A method with parameters of every kind."""

    name = "toy"
    source = "this test"
    per_tensor = frozenset({"density", "scale"})
    by_model = ("density", "weights")

    density: per_model(0, 1) = Field(0.5)
    weights: per_model() = Field(None)
    scale: Finite = Field(1.0, le=10)
    gamma: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _together(self) -> Toy:
        if isinstance(self.density, float) and self.gamma + self.density > 1:
            raise ValueError("gamma + density should be at most 1")
        return self


def declared(
    params: Mapping[str, Any] = {},
    *tensors: tuple[str, Mapping[str, Any]],
    changes: Mapping[str, Any] = {},
) -> Parameters:
    return declare(Toy(), params, changes, tensors, MODELS, "out")


def problems(
    params: Mapping[str, Any] = {},
    *tensors: tuple[str, Mapping[str, Any]],
    changes: Mapping[str, Any] = {},
) -> list[str]:
    try:
        return declared(params, *tensors, changes=changes).settle(TENSORS, {})
    except InputError as error:
        return error.problems


NUMBERS = st.sampled_from([0.0, 0.1, 0.25, 0.7, 1.0])
GRADIENTS = st.lists(NUMBERS, min_size=2, max_size=4).map(lambda points: {"layers": points})
SINGLE = NUMBERS | GRADIENTS
DENSITIES = SINGLE | st.lists(SINGLE, min_size=3, max_size=3) | st.dictionaries(st.sampled_from(MODELS), SINGLE)
SECTIONS = st.fixed_dictionaries({}, optional={"density": DENSITIES, "scale": SINGLE})
PATTERNS = st.sampled_from(["*", "layers.*", "*.mlp.*", "layers.1.attn.weight", "head.?eight"])
WHOLE = st.fixed_dictionaries({}, optional={"density": SINGLE | st.lists(SINGLE, min_size=3, max_size=3)})


@given(WHOLE, SECTIONS, st.lists(st.tuples(PATTERNS, SECTIONS), max_size=4))
def test_later_entries_win_model_by_model(whole: Any, changes: Any, entries: Any) -> None:
    """Against the rule spelt out: go through all entries that hold for the tensor, and set what each says."""
    parameters = declared(whole, *entries, changes=changes)
    assert parameters.settle(TENSORS, {}) == []
    matched = {"*": TENSORS, "layers.*": TENSORS[1:-1], "*.mlp.*": TENSORS[2:-1:2]}
    for tensor, depth in depths(TENSORS).items():
        density, scale = dict.fromkeys(MODELS, 0.5), 1.0
        holding = [said for pattern, said in entries if tensor in matched.get(pattern, (tensor_of(pattern),))]
        for said in (whole, changes, *holding):
            value = at_depth(said.get("density", {}), depth)
            new = value if isinstance(value, (dict, list)) else dict.fromkeys(MODELS, value)
            density |= new if isinstance(new, dict) else dict(zip(MODELS, new, strict=True))
            scale = at_depth(said.get("scale", scale), depth)
        method = parameters.of(tensor)
        assert of_models(method.density, MODELS) == list(density.values())
        assert method.scale == scale


def tensor_of(pattern: str) -> str:
    return "head.weight" if pattern.startswith("head") else pattern


def test_a_gradient_goes_over_the_layers() -> None:
    parameters = declared({"scale": {"layers": [0.1, 0.5, 0.9]}})
    assert parameters.settle(TENSORS, {}) == []
    assert [parameters.of(t).scale for t in TENSORS] == [0.1, 0.1, 0.1, 0.5, 0.5, 0.9, 0.9, 0.9]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"densty": 0.1}, "toy has no parameter 'densty'; did you mean 'density'"),
        ({"density": 1.5}, "density is 1.5; expected numbers from 0 to 1"),
        ({"density": [0.1, 1.5, 0.2]}, "density[1] is 1.5; expected"),
        ({"density": {"math": 1.5}}, "density.math is 1.5; expected"),
        ({"density": {"math": [0.1, 0.2]}}, "density.math is [0.1, 0.2]; it should be one number"),
        ({"density": {"layers": [0.1, 1.5]}}, "density.layers[1] is 1.5; expected"),
        ({"density": {"math": {"layers": [0.1, 1.5]}}}, "density.math.layers[1] is 1.5"),
        ({"density": {"layers": [0.1]}}, "density.layers has 1 values; give two or more"),
        ({"density": {"layers": [0.1, "x"]}}, "density.layers is [0.1, 'x']; it should hold finite numbers"),
        ({"scale": {"layers": [0.1, float("inf")]}}, "scale.layers is [0.1, inf]"),
        ({"scale": {"layers": [1, 11]}}, "scale.layers[1] is 11; it should be less than or equal to 10"),
        ({"scale": [1, 2]}, "scale is [1, 2]; it should be a valid number"),
        ({"gamma": {"layers": [0, 1]}}, "gamma holds for the whole model"),
    ],
    ids=str,
)
def test_wrong_values_are_named_wherever_they_stand(said: dict[str, Any], expected: str) -> None:
    """One problem, whose path begins with the place: nothing for the whole, outputs.NAME, or tensors[i]."""
    (alone,) = problems(said)
    assert expected.removeprefix("toy ") in alone
    (of_output,) = problems(changes=said)
    (of_tensors,) = problems({}, ("*", {}), ("*.mlp.*", said))
    if "whole model" not in expected:
        assert of_output.startswith("outputs.out.")
    assert of_tensors.startswith("tensors[1].")
    for text in (of_output, of_tensors):
        assert expected in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (({}, ("*.mpl.*", {"scale": 2})), "tensors[0]: '*.mpl.*' matches no tensor that is merged"),
        (({}, (["*", "layers.*.mlp.weigth"], {"scale": 2})), "did you mean 'layers.*.mlp.weight'"),
        (({}, ("*", {"gamma": 0.1})), "tensors[0].gamma holds for the whole model"),
        (({}, ("*", {"weights": {"math": {"layers": [0, 1]}}})), "tensors[0].weights holds for the whole model"),
        (({}, ("*", {"density": {"mat": 0.1}})), "tensors[0].density.mat is of no model; did you mean 'math'"),
        (({"weights": [1, 2]},), "2 weights for 3 models"),
        (({"weights": {"math": 1}},), "weights are for math; the models are math, code, law"),
        (({"gamma": 0.6},), "toy: gamma + density should be at most 1"),
        (({"gamma": 0.3}, ("*", {"density": 0.2}), ("layers.1.*", {"density": 0.8})), "tensor 'layers.1.attn.weight'"),
        (({"gamma": 0.3, "density": {"layers": [0.1, 0.9]}},), "tensor 'layers.2.attn.weight': toy: gamma + density"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_does_not_go_together(arguments: Any, expected: str) -> None:
    (problem,) = problems(*arguments)
    assert expected in problem


def test_a_gradient_needs_layers() -> None:
    parameters = declared({"scale": {"layers": [0, 1]}})
    (problem,) = parameters.settle(["embed.weight", "head.weight"], {})
    assert "layers.7." in problem


def test_all_problems_come_at_once() -> None:
    found = problems({"densty": 1, "scale": 11}, ("*", {"density": 2}), ("x", {"density": {"layers": [0, -1, 2]}}))
    assert len(found) == 5


def test_a_method_object_keeps_what_it_was_made_with() -> None:
    parameters = declare(Toy(scale=3.0, gamma=0.25), {}, {"gamma": 0.5}, [("*.mlp.*", {"scale": 2})], MODELS)
    assert parameters.settle(TENSORS, {}) == []
    assert (parameters.method.scale, parameters.method.gamma) == (3.0, 0.5)
    assert parameters.of("layers.0.mlp.weight").scale == 2


def test_the_record_says_what_was_said() -> None:
    """Gradients and patterns as a recipe would have them, in what JSON knows; what was left out by its default."""
    gradient = {"layers": (0.1, 0.9)}
    record = declared({"density": gradient}, ("*.mlp.*", {"scale": Fraction(1, 2)})).record()
    assert record["params"] == {"nonfinite": "error", "density": {"layers": [0.1, 0.9]}, "weights": None} | {
        "scale": 1.0,
        "gamma": 0.0,
    }
    assert record["tensors"] == [{"match": ["*.mlp.*"], "parameters": {"scale": 0.5}}]


GIVEN_UP = [
    (name, own) for name in names() for own in get(name).by_model if get(name).model_fields[own].default is not None
]


@pytest.mark.parametrize(("method", "parameter"), GIVEN_UP)
def test_nothing_is_no_number(method: str, parameter: str) -> None:
    """Of a parameter by model too: none of its numbers is what it stands for."""
    with pytest.raises(InputError, match=f"{parameter} is None; expected .*numbers"):
        declare(method, {parameter: None}, {}, (), MODELS)
    with pytest.raises(InputError, match=rf"tensors\[0\]\.{parameter} is None"):
        declare(method, {}, {}, [("x", {parameter: None})], MODELS)


@pytest.mark.parametrize(
    ("method", "params"), [("free", {"rescale": 1e308}), ("free", {"rescale": "-1e39"}), ("nearswap", {"t": 1e308})]
)
def test_what_float32_cannot_hold(method: str, params: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"parameter (rescale|t) is"):
        declare(method, params, {}, (), MODELS)
