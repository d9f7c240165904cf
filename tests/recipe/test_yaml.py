"""YAML as plain data: what is read, and what is refused with line and column."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmerge.errors import InputError
from fastmerge.recipe.yaml_file import SIZE_LIMIT, read_yaml

TEXTS = st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_json_is_read_as_it_is(tmp_path_factory: pytest.TempPathFactory, content: dict[str, object]) -> None:
    file = tmp_path_factory.getbasetemp() / "recipe.json"
    file.write_text(json.dumps(content))
    assert read_yaml(file) == content


@given(st.text(st.sampled_from("ab:-[]{},&*!|>'\"#%@`?~\n \t10.é\0"), max_size=30))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(text)
    with suppress(InputError):
        assert isinstance(read_yaml(file), dict)


LAUGHS = "x0: &x0 [1, 1, 1, 1]\n" + "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 40))


def test_scalars_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    """Names and numbers that YAML 1.1 takes for something else; keys are the text that stands there."""
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "no: off\n1: 010\n2024-01-01: 1:30\na: 1e-3\nb: .5\nc: ~\nd:\ne: 'true'\nf: true\ng: -.inf\nh: [+3, 1., 0x1]\n"
    )
    assert read_yaml(file) == {
        "no": "off",
        "1": 10,
        "2024-01-01": "1:30",
        "a": 0.001,
        "b": 0.5,
        "c": None,
        "d": None,
        "e": "true",
        "f": True,
        "g": -math.inf,
        "h": [3, 1.0, "0x1"],
    }


def test_aliases_and_merge_keys(tmp_path: Path) -> None:
    """The nearest value counts: a mapping's own, then the first that is merged."""
    file = tmp_path / "recipe.yaml"
    file.write_text("a: &a {x: 1, y: [2]}\nb: &b {x: 3, z: 4}\nc: *a\nd: {y: 5, <<: [*a, *b]}\n'<<': 6\n")
    a = {"x": 1, "y": [2]}
    content = read_yaml(file)
    assert content == {"a": a, "b": {"x": 3, "z": 4}, "c": a, "d": {"x": 1, "y": 5, "z": 4}, "<<": 6}
    assert list(content["d"]) == ["x", "y", "z"]  # which of models counts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method: ties\nmodels: [a: 1\n", "line 3, column 1"),
        ("method: ties\n\tbase: x\n", "line 2, column 1"),
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: the key 'a' is there twice"),
        ("a: {b: 1, b: 1}\n", "line 1, column 11: the key 'b' is there twice"),
        ("a: &x [*x]\n", "line 1, column 4: holds itself"),
        ("a: &x [1]\nb: {<<: *x}\n", "line 1, column 4: << takes a mapping"),
        ("a: {<<: {b: 1, b: 2}}\n", "the key 'b' is there twice"),
        (LAUGHS, "more than 200,000 values, aliases written out"),
        ("a: !!python/object/apply:os.system ['true']\n", "line 1, column 4: tags such as"),
        ("? [1, 2]\n: 3\n", "line 1, column 3: a key must be a plain text"),
        ("- 1\n", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("a: 1\n---\nb: 2\n", "line 3, column 1: another document begins; a recipe is one"),
        ("a: \0\n", "special characters are not allowed"),
        ("[" * 5000, "nested too deeply"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_what_is_no_recipe(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_yaml(file)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{file}: ")
    assert said in problem


def test_files_that_are_no_text(tmp_path: Path) -> None:
    for name, data, said in (
        ("weights", b"\x80\x00" * 9, "UTF-8"),
        ("huge", b"a: " + b"b" * SIZE_LIMIT, "no recipe"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=said):
            read_yaml(tmp_path / name)
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="cannot be read"):
            read_yaml(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1,\n"a": 2}', "the key 'a' is there twice"),
        ('{"a": 1,\n "b": }', "line 2, column 7: Expecting value"),
        ("[]", "a recipe is a mapping"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
        ("[" * 100_000, "nested too deeply"),
    ],
    ids=["twice", "cut off", "list", "long", "deep"],
)
def test_json_that_is_no_recipe(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    file.write_text(text)
    with pytest.raises(InputError, match=rf"recipe\.json: .*{said}"):
        read_yaml(file)
