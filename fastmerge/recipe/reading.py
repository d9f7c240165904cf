"""A merge as data, whether it is a recipe of fastmerge's or a configuration of mergekit's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .mergekit.recipe import MergekitRecipe, is_mergekit
from .schema import Recipe
from .yaml_file import read_yaml

AnyRecipe = Recipe | MergekitRecipe


def read_recipe(source: str | Path | Mapping[str, Any] | AnyRecipe) -> AnyRecipe:
    """A recipe from a YAML (or JSON) file, or from its content; its keys tell which kind it is."""
    if isinstance(source, (Recipe, MergekitRecipe)):
        return source
    if isinstance(source, Mapping):
        return MergekitRecipe(source) if is_mergekit(source) else Recipe(**source)
    file = Path(source).expanduser()
    content = read_yaml(file)
    return MergekitRecipe.of(content, file) if is_mergekit(content) else Recipe.of(content, file)
