"""MODEL+ADAPTER and org/name@revision, told from paths that happen to look like them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmerge.errors import InputError
from fastmerge.formats.spec import ModelSpec, hub_id, parse_spec


@pytest.mark.parametrize(
    ("text", "model", "adapter"),
    [
        ("model", "model", None),
        ("org/model", "org/model", None),
        ("org/model+org/lora", "org/model", "org/lora"),
        ("org/model@v1+org/lora@refs/pr/2", "org/model@v1", "org/lora@refs/pr/2"),
        ("./model+./lora+more", "./model", "./lora+more"),
    ],
)
def test_a_spec_is_split_at_its_plus(text: str, model: str, adapter: str | None) -> None:
    assert parse_spec(text) == ModelSpec(model, adapter)
    assert str(parse_spec(text)) == text


@pytest.mark.parametrize("text", ["+", "+lora", "model+"])
def test_a_missing_side_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"MODEL\+ADAPTER"):
        parse_spec(text)


def test_paths_that_exist_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("c++", "a+b", "org"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_spec("a+b") == ModelSpec("a+b")
    assert parse_spec("a+b+lora") == ModelSpec("a+b", "lora")
    assert parse_spec("c+++lora") == ModelSpec("c++", "lora")
    assert parse_spec(tmp_path / "a+b") == ModelSpec(str(tmp_path / "a+b"))


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("org/name", ("org/name", None)),
        ("org/name@main", ("org/name", "main")),
        ("org/na.me@refs/pr/1", ("org/na.me", "refs/pr/1")),
        ("./name", None),
        ("name", None),
        ("a/b/c", None),
        ("org/name@", None),
        ("/org/name", None),
    ],
)
def test_ids_of_the_hub(place: str, found: tuple[str, str | None] | None) -> None:
    assert hub_id(place) == found


def test_local_places_are_relative_to_a_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    spec = parse_spec("org/name@v1+runs/lora", tmp_path)
    assert spec.relative_to(tmp_path) == ModelSpec("org/name@v1", str(tmp_path / "runs/lora"))
