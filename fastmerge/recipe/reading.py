"""A merge as data, whether it is a recipe of fastmerge's or a configuration of mergekit's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..forms import well_formed
from ..methods._declaration import Method
from . import plan as planning
from .merge_plan import MergePlan
from .mergekit.recipe import MergekitRecipe, is_mergekit
from .options import option_problems, place_problems
from .schema import Recipe
from .yaml_file import read_yaml

if TYPE_CHECKING:
    import torch

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


@well_formed
def plan(what: str | Path | Mapping[str, Any] | AnyRecipe | Method, *arguments: Any, **options: Any) -> MergePlan:
    """Check a merge, and lay out its result; reads headers only.

    Of a method, by its name or declared, with the arguments of `fastmerge.merge`; or of a recipe, or a
    configuration of mergekit's (a file .yml, .yaml or .json, its content, or a Recipe), with those of `Recipe.plan`.
    What it would read and write is in the plan's `summary()`. Raises InputError with every problem found.
    """
    if isinstance(what, Method) or (isinstance(what, str) and not what.endswith((".yml", ".yaml", ".json"))):
        return planning.plan(what, *arguments, **options)
    return plan_recipe(what, *arguments, **options)


@well_formed
def plan_recipe(
    source: str | Path | Mapping[str, Any] | AnyRecipe,
    out: str | Path | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    memory: str | int | None = None,
    device: str | torch.device = "auto",
    overwrite: bool = False,
    resume: bool = False,
    hashes: bool = False,
) -> MergePlan:
    """Check a recipe that is yet to be read, as `Recipe.plan` does."""
    try:
        recipe = read_recipe(source)
    except InputError as error:
        problems = option_problems(dtype, memory or 0, device)
        problems += place_problems(out, overwrite=overwrite, resume=resume, outputs=None)
        raise InputError([*error.problems, *problems]) from None
    return recipe.plan(
        out, dtype=dtype, memory=memory, device=device, overwrite=overwrite, resume=resume, hashes=hashes
    )
