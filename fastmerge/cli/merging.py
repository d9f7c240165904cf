"""Commands that merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError, attempt
from ..interrupts import raised
from .app import (
    BaseOption,
    DeviceOption,
    DtypeOption,
    HashOption,
    JsonOption,
    MemoryOption,
    MethodName,
    ModelOption,
    OverwriteOption,
    ParamOption,
    RenameOption,
    ResumeOption,
    SeedOption,
    SpecificOption,
    VocabOption,
    app,
    nested,
    pairs,
    renames,
)
from .output import echo_json, errors, progress, show_report, show_rows, size

if TYPE_CHECKING:
    from ..recipe.merge_plan import MergePlan


@app.command()
def merge(
    method: MethodName,
    out_folder: Annotated[Path, typer.Option("--out", help="folder to write; appears whole or not at all")],
    base: BaseOption = None,
    model: ModelOption = [],  # noqa: B006 - typer reads defaults, nothing writes to them
    param: ParamOption = [],  # noqa: B006
    task_specific: SpecificOption = [],  # noqa: B006
    rename: RenameOption = [],  # noqa: B006
    vocab: VocabOption = "error",
    dtype: DtypeOption = None,
    memory: MemoryOption = "1GiB",
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    hashes: HashOption = False,
    as_json: JsonOption = False,
) -> None:
    """Merge models into one folder."""
    param = param if seed is None else [*param, f"seed={seed}"]
    with errors(as_json, out_folder):
        prepared = _plan(
            method,
            base,
            model,
            out_folder,
            param,
            rename,
            task_specific=task_specific,
            vocab=vocab,
            dtype=dtype,
            memory=memory,
            device=device,
            overwrite=overwrite,
            resume=resume,
            hashes=hashes,
        )
        execute(prepared, as_json)


@app.command()
def plan(
    method: MethodName,
    base: BaseOption = None,
    model: ModelOption = [],  # noqa: B006
    out_folder: Annotated[Path | None, typer.Option("--out", help="check this output folder as well")] = None,
    param: ParamOption = [],  # noqa: B006
    task_specific: SpecificOption = [],  # noqa: B006
    rename: RenameOption = [],  # noqa: B006
    vocab: VocabOption = "error",
    dtype: DtypeOption = None,
    memory: MemoryOption = "1GiB",
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check a merge and show what it would read and write, from headers only."""
    with errors(as_json):
        prepared = _plan(
            method,
            base,
            model,
            out_folder,
            param,
            rename,
            task_specific=task_specific,
            vocab=vocab,
            dtype=dtype,
            memory=memory,
            device=device,
            overwrite=overwrite,
        )
        show_plan(prepared, as_json)


@app.command()
def task(
    artefact: Annotated[Path, typer.Argument(help="an EMR artefact, or a folder of experts", metavar="DIR")],
    name: Annotated[str, typer.Argument(help="the task", metavar="NAME")],
    out_folder: Annotated[Path, typer.Option("--out", help="folder to write")],
    base: Annotated[str | None, typer.Option("--base", help="where the base model is now")] = None,
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write one task's model from an EMR artefact or a folder of experts."""
    with errors(as_json, out_folder):
        from ..engine.task import task as run

        with raised(), progress(f"{name} → {out_folder}", as_json) as advance:
            report = run(artefact, name, out_folder, base=base, overwrite=overwrite, resume=resume, progress=advance)
        show_report(report, as_json)


def _plan(
    method: str,
    base: str | None,
    models: list[str],
    folder: Path | None,
    params: list[str],
    rename: list[str],
    **options: Any,
) -> MergePlan:
    """Plan what the command line says; `options` are those of `plan` that need not be read."""
    from ..formats.models import open_models
    from ..recipe.options import option_problems, place_problems
    from ..recipe.parameters import declare
    from ..recipe.plan import plan as planned

    problems: list[str] = []
    named = pairs(models, "--model", "NAME=PATH", problems)
    values = nested(pairs(params, "-p", "NAME=VALUE", problems), problems)
    renamed = renames(rename, problems)
    if len(named) < len(models):  # which are to be merged is not known
        attempt(problems, lambda: declare(method, values, {}, (), [name for name, _ in named]))
        problems += option_problems(options["dtype"], options["memory"], options["device"])
        open_models(base, named, problems, fetch=False)
        problems += place_problems(folder, overwrite=options["overwrite"], resume=options.get("resume", False))
        raise InputError(problems)
    prepared = attempt(problems, lambda: planned(method, base, named, folder, values, rename=renamed, **options))
    if problems or prepared is None:
        raise InputError(problems)
    return prepared


def execute(prepared: MergePlan, as_json: bool) -> None:
    """Carry out a plan, and say what was done."""
    from ..formats.mapping import Inputs, head_start
    from ..late import late_torch

    prepared = prepared.fetched()  # under a bar of its own
    files = Inputs(prepared.headers, resumable=True)
    late_torch()
    with head_start(files):
        from ..engine.merge import execute as carry_out  # imports torch
    title = f"{prepared.method.name} → {prepared.out}"
    with raised(), progress(title, as_json) as advance:
        report = carry_out(prepared, advance, files)
    show_report(report, as_json)


def show_plan(prepared: MergePlan, as_json: bool) -> None:
    """What a plan would read and write."""
    summary = prepared.summary()
    if as_json:
        return echo_json(summary)
    count = len(summary["files"])
    rows = [
        ("method", f"{summary['method']} ({prepared.method.source})"),
        ("models", ", ".join(summary["models"])),
        ("tensors", f"{summary['tensors']} ({summary['parameters']:,} parameters)"),
        ("passes", str(summary["passes"])),
        ("reads", size(summary["bytes_read"])),
        ("writes", f"{size(summary['bytes_written'])} in {count} file{'s' if count > 1 else ''}"),
    ]
    rows += [(f"fetches {repo}", size(nbytes)) for repo, nbytes in summary["fetches"].items()]
    for name, changes in summary["outputs"].items():
        rows.append((f"output {name}", ", ".join(f"{key} {json.dumps(value)}" for key, value in changes.items())))
    rows += [(f"kept for {name}", ", ".join(tensors)) for name, tensors in summary["task_specific"].items()]
    return show_rows(rows + [("note", note) for note in summary["notes"]])
