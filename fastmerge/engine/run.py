"""Merging what a recipe says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..forms import well_formed
from ..recipe.reading import AnyRecipe, plan_recipe
from .merge import execute
from .report import Report
from .run_pass import Progress

if TYPE_CHECKING:
    import torch


@well_formed
def run(
    recipe: str | Path | Mapping[str, Any] | AnyRecipe,
    out: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    memory: str | int | None = None,
    device: str | torch.device = "auto",
    overwrite: bool = False,
    resume: bool = False,
    hashes: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Merge what a recipe says into the folder `out`; several outputs are folders in it.

    recipe: a YAML file, its content, or a Recipe; a configuration of mergekit's is known by its keys. dtype and memory
    go before the recipe's; the rest is as in `merge`, errors too.
    """
    prepared = plan_recipe(
        recipe, out, dtype=dtype, memory=memory, device=device, overwrite=overwrite, resume=resume, hashes=hashes
    )
    return execute(prepared, progress)
