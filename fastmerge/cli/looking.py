"""Commands that look: at folders, at what differs, at the installation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import InputError, VerifyError, attempt
from ..interrupts import raised
from .app import JsonOption, MemoryOption, RenameOption, SpecificOption, app, check, pairs, renames
from .output import echo_json, err, errors, out, progress, show_rows

if TYPE_CHECKING:
    from ..engine.diff import Difference, Differences
    from ..engine.verify import Verification


@app.command()
def info(
    path: Annotated[str, typer.Argument(help="a checkpoint, EMR artefact or folder of experts", metavar="DIR")],
    as_json: JsonOption = False,
) -> None:
    """What a checkpoint, an EMR artefact or a folder of experts holds."""
    with errors(as_json):
        from ..doctor import describe

        content = describe(path)
        if as_json:
            echo_json(content)
            return
        texts = {
            key: ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
            for key, value in content.items()
        }
        show_rows({key.replace("_", " "): text for key, text in texts.items()})


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="a folder made by fastmerge merge or task", metavar="DIR")],
    base: Annotated[str | None, typer.Option("--base", help="where the base model is now")] = None,
    model: Annotated[list[str], typer.Option("--model", metavar="NAME=PATH", help="where a model is now; repeat")] = [],  # noqa: B006 - typer reads defaults, nothing writes to them
    samples: Annotated[int, typer.Option("--samples", min=0, help="blocks that are merged again")] = 16,
    everything: Annotated[bool, typer.Option("--all", help="merge all again")] = False,
    hashes: Annotated[bool, typer.Option("--hash", help="hash all files, and add the hashes to the record")] = False,
    seed: Annotated[int, typer.Option("--seed", help="of the choice of blocks")] = 0,
    memory: MemoryOption = "1GiB",
    as_json: JsonOption = False,
) -> None:
    """Check a merged folder against its record, and blocks of it against its inputs."""
    with errors(as_json):
        problems: list[str] = []
        places = dict(pairs(model, "--model", "NAME=PATH", problems))
        check(problems)
        from ..engine.verify import verify as run

        count = None if everything else samples
        try:
            with raised(), progress(f"verifying {folder}", as_json) as advance:
                found = run(
                    folder,
                    base=base,
                    models=places,
                    samples=count,
                    hashes=hashes,
                    seed=seed,
                    memory=memory,
                    progress=advance,
                )
        except VerifyError as error:
            found = error.verification
        _show_verification(found, as_json)


@app.command()
def diff(
    a: Annotated[str, typer.Argument(help="a checkpoint", metavar="A")],
    b: Annotated[str, typer.Argument(help="another", metavar="B")],
    base: Annotated[str | None, typer.Option("--base", help="compare the task vectors A - BASE and B - BASE")] = None,
    top: Annotated[int, typer.Option("--top", min=0, help="how many tensors to list, 0 for all")] = 20,
    task_specific: SpecificOption = [],  # noqa: B006
    rename: RenameOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """What differs between two checkpoints, tensor by tensor, the most changed first."""
    with errors(as_json):
        problems: list[str] = []
        renamed = renames(rename, problems)
        from ..engine.diff import checked
        from ..engine.diff import diff as run

        if problems:
            attempt(problems, lambda: checked(a, b, base, task_specific, renamed))
            raise InputError(problems)

        with raised(), progress(f"{a} and {b}", as_json) as advance:
            found = run(a, b, base=base, task_specific=task_specific, rename=renamed, progress=advance)
        found.tensors = found.tensors[: top or None]
        _show_differences(found, as_json)


BENCHMARKS = ("ops", "merges", "scoring", "switching", "peers", "quality", "pool")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    which: Annotated[
        str,
        typer.Argument(help="… peers: other tools; quality, pool: trained models", metavar=f"[{'|'.join(BENCHMARKS)}]"),
    ] = "ops",
) -> None:
    """Run the benchmarks of a source checkout, from its folder; options such as --quick are the benchmark's."""
    with errors(False):
        script = Path("bench") / "run.py"
        if which not in BENCHMARKS:
            raise InputError(f"unknown benchmark {which!r}; there are {', '.join(BENCHMARKS)}")
        if not script.is_file():
            raise InputError("benchmarks are part of the source: clone the repository and run this in its folder")
        import subprocess

        raise typer.Exit(subprocess.run([sys.executable, str(script), which, *context.args], check=False).returncode)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Which backends can be used here, and why others cannot."""
    with errors(as_json):
        from ..doctor import examine

        content = examine()
        if as_json:
            echo_json(content)
            return
        rows = {key: str(value) for key, value in content["machine"].items()}
        show_rows(rows | {f"backend {name}": state for name, state in content["backends"].items()})


def _show_verification(found: Verification, as_json: bool) -> None:
    if as_json:
        echo_json(found.to_dict())
    else:
        rows = [(check.what, "differ" if check.problems else "good") for check in found.checks]
        show_rows([("verified", found.folder), *rows, *(("note", note) for note in found.notes)])
    for problem in found.problems:
        err.print(f"[bold red]differs:[/] {escape(problem)}", soft_wrap=True, highlight=False)
    if found.problems:
        raise typer.Exit(VerifyError.exit_code)


def _show_differences(found: Differences, as_json: bool) -> None:
    if as_json:
        return echo_json(found.to_dict())
    table = Table(box=None, pad_edge=False)
    table.add_column("tensor", overflow="fold")
    what = "" if found.base is None else " - base"
    for heading in (f"|A{what}|", f"|B{what}|", "|B - A|", "relative", "largest", "cosine", "same sign"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in (*found.tensors, found.total):
        table.add_row(escape(one.name), *_numbers(one), style="bold" if one is found.total else None)
    out.print(table)
    rows = [("integers that differ", ", ".join(found.copied))] if found.copied else []
    if found.total.nonfinite:
        rows.append(("not finite", f"{found.total.nonfinite:,} elements of B - A"))
    return show_rows(rows + [("note", note) for note in found.notes])


def _numbers(one: Difference) -> list[str]:
    whole = (one.norm_a, one.norm_b, one.change)
    shown = ["-" if value is None else f"{value:.4g}" for value in whole]
    shown.append("-" if one.relative is None else f"{one.relative:.3%}")
    shown += ["-" if value is None else f"{value:.4g}" for value in (one.largest, one.cosine)]
    return [*shown, "-" if one.same_sign is None else f"{one.same_sign:.2%}"]
