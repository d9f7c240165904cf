"""Commands about recipes and methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..errors import InputError, attempt
from .app import DeviceOption, HashOption, JsonOption, OverwriteOption, ResumeOption, app
from .merging import execute, show_plan
from .output import echo_json, errors, out, show_rows


@app.command()
def run(
    recipe: Annotated[
        Path, typer.Argument(help="a YAML file: a recipe, or mergekit's configuration", metavar="RECIPE")
    ],
    out_folder: Annotated[Path | None, typer.Option("--out", help="folder to write; a folder in it per output")] = None,
    plan_only: Annotated[bool, typer.Option("--plan", help="check it, and show what it would read and write")] = False,
    dtype: Annotated[str | None, typer.Option("--dtype", help="of the result; goes before the recipe's")] = None,
    memory: Annotated[str | None, typer.Option("--memory", help="bound of the buffers; goes before it too")] = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    hashes: HashOption = False,
    as_json: JsonOption = False,
) -> None:
    """Merge what a recipe says."""
    with errors(as_json, out_folder):
        from ..recipe.reading import plan_recipe

        problems: list[str] = []
        if out_folder is None and not plan_only:
            problems.append("say where the result goes (--out DIR), or pass --plan")
        prepared = attempt(
            problems,
            lambda: plan_recipe(
                recipe,
                out_folder,
                dtype=dtype,
                memory=memory,
                device=device,
                overwrite=overwrite,
                resume=resume,
                hashes=hashes,
            ),
        )
        if problems or prepared is None:
            raise InputError(problems)
        if plan_only:
            show_plan(prepared, as_json)
        else:
            execute(prepared, as_json)


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from ..recipe.json_schema import recipe_schema

    echo_json(recipe_schema())


@app.command()
def methods(
    named: Annotated[list[str], typer.Argument(help="these alone", metavar="METHOD")] = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """All methods: what they do, their parameters, defaults and sources."""
    with errors(as_json):
        from ..recipe.json_schema import method_table

        content = method_table(named)
        if as_json:
            echo_json(content)
            return
        for method in content:
            out.print(f"[bold]{method['name']}[/]  {escape(method['does'])}\n[dim]{escape(method['source'])}[/]")
            rows = []
            for name, parameter in method["parameters"].items():
                default = "" if parameter["default"] is None else f", default {json.dumps(parameter['default'])}"
                rows.append((f"  {name}", f"{parameter['about']} ({parameter['form']}{default})"))
            show_rows(rows)
