"""The command line. Modules that import torch are loaded by the commands that compute, after preflight."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .errors import FastmergeError, InputError

if TYPE_CHECKING:
    from .engine.report import Report
    from .recipe.plan import MergePlan

app = typer.Typer(
    name="fastmerge",
    help="Merge fine-tuned checkpoints of one base model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out = Console()
err = Console(stderr=True)

MethodName = Annotated[str, typer.Argument(help="linear, task_arithmetic, magmax, emr, …", metavar="METHOD")]
BaseOption = Annotated[str | None, typer.Option("--base", help="the pre-trained model: folder, file or Hub name")]
ModelOption = Annotated[list[str], typer.Option("--model", metavar="NAME=PATH", help="a fine-tuned model; repeat")]
ParamOption = Annotated[list[str], typer.Option("--param", "-p", metavar="NAME=VALUE", help="of the method; repeat")]
SpecificOption = Annotated[
    list[str], typer.Option("--task-specific", metavar="PATTERN", help="tensors kept per task, e.g. 'classifier.*'")
]
RenameOption = Annotated[
    list[str], typer.Option("--rename", metavar="NAME:OLD=NEW", help="replace a prefix of a model's tensor names")
]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="of the result; base's by default")]
MemoryOption = Annotated[str, typer.Option("--memory", help="bound of the buffers")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto or cpu")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="replace the output folder")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON, for programs")]


def _version(show: bool) -> None:
    if show:
        from . import __version__

        typer.echo(f"fastmerge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print it")] = False,
) -> None:
    pass


@app.command()
def merge(
    method: MethodName,
    out_folder: Annotated[Path, typer.Option("--out", help="folder to write; appears whole or not at all")],
    base: BaseOption = None,
    model: ModelOption = [],  # noqa: B006 - typer reads defaults, nothing writes to them
    param: ParamOption = [],  # noqa: B006
    task_specific: SpecificOption = [],  # noqa: B006
    rename: RenameOption = [],  # noqa: B006
    dtype: DtypeOption = None,
    memory: MemoryOption = "1GiB",
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Merge models into one folder."""
    with _errors(as_json):
        prepared = _plan(
            method, out_folder, base, model, param, task_specific, rename, dtype, memory, device, overwrite
        )
        from .engine.merge import execute

        with _progress(f"{method} → {out_folder}", prepared.bytes_read, as_json) as progress:
            report = execute(prepared, progress)
        _show(report, as_json)


@app.command()
def plan(
    method: MethodName,
    base: BaseOption = None,
    model: ModelOption = [],  # noqa: B006
    out_folder: Annotated[Path | None, typer.Option("--out", help="check this output folder as well")] = None,
    param: ParamOption = [],  # noqa: B006
    task_specific: SpecificOption = [],  # noqa: B006
    rename: RenameOption = [],  # noqa: B006
    dtype: DtypeOption = None,
    memory: MemoryOption = "1GiB",
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check a merge and show what it would read and write, from headers only."""
    with _errors(as_json):
        prepared = _plan(
            method, out_folder, base, model, param, task_specific, rename, dtype, memory, device, overwrite
        )
        summary = prepared.summary()
        if as_json:
            typer.echo(json.dumps(summary, indent=2))
            return
        table = _table()
        table.add_row("method", f"{summary['method']} ({prepared.method.source})")
        table.add_row("models", ", ".join(summary["models"]))
        table.add_row("tensors", f"{summary['tensors']} ({summary['parameters']:,} parameters)")
        table.add_row("passes", str(summary["passes"]))
        table.add_row("reads", _size(summary["bytes_read"]))
        table.add_row("writes", f"{_size(summary['bytes_written'])} in {len(summary['files'])} files")
        for name, tensors in summary["task_specific"].items():
            table.add_row(f"kept for {name}", ", ".join(tensors))
        for note in summary["notes"]:
            table.add_row("note", escape(note))
        out.print(table)


@app.command()
def task(
    artefact: Annotated[Path, typer.Argument(help="a folder made by an EMR merge", metavar="EMR_DIR")],
    name: Annotated[str, typer.Argument(help="the task", metavar="NAME")],
    out_folder: Annotated[Path, typer.Option("--out", help="folder to write")],
    base: Annotated[str | None, typer.Option("--base", help="where the base model is now")] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write one task's model from an EMR artefact."""
    with _errors(as_json):
        from .engine.task import task as run

        _show(run(artefact, name, out_folder, base=base, overwrite=overwrite), as_json)


@app.command()
def info(
    path: Annotated[str, typer.Argument(help="a checkpoint or an EMR artefact", metavar="DIR")],
    as_json: JsonOption = False,
) -> None:
    """What a checkpoint or an EMR artefact holds."""
    with _errors(as_json):
        from .doctor import describe

        content = describe(path)
        if as_json:
            typer.echo(json.dumps(content, indent=2))
            return
        table = _table()
        for key, value in content.items():
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
            table.add_row(key.replace("_", " "), escape(text))
        out.print(table)


@app.command()
def bench(
    which: Annotated[str, typer.Argument(help="what", metavar="[ops|merges|switching]")] = "ops",
) -> None:
    """Run the benchmarks of a source checkout, from its folder."""
    with _errors(False):
        script = Path("bench") / "run.py"
        if which not in ("ops", "merges", "switching"):
            raise InputError(f"unknown benchmark {which!r}; there are ops, merges and switching")
        if not script.is_file():
            raise InputError("benchmarks are part of the source: clone the repository and run this in its folder")
        import subprocess

        raise typer.Exit(subprocess.run([sys.executable, str(script), which], check=False).returncode)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Which backends can be used here, and why others cannot."""
    with _errors(as_json):
        from .doctor import examine

        content = examine()
        if as_json:
            typer.echo(json.dumps(content, indent=2))
            return
        table = _table()
        for key, value in content["machine"].items():
            table.add_row(key, escape(str(value)))
        for backend, state in content["backends"].items():
            table.add_row(f"backend {backend}", escape(state))
        out.print(table)


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 failed while running, 2 bad input."""
    app()


def _plan(
    method: str,
    folder: Path | None,
    base: str | None,
    models: list[str],
    params: list[str],
    task_specific: list[str],
    rename: list[str],
    dtype: str | None,
    memory: str,
    device: str,
    overwrite: bool,
) -> MergePlan:
    from .recipe.plan import plan as prepare

    problems: list[str] = []
    pairs = _pairs(models, "--model", "NAME=PATH", problems)
    values = dict(_pairs(params, "-p", "NAME=VALUE", problems))
    renames: dict[str, list[tuple[str, str]]] = {}
    for text in rename:
        name, colon, change = text.partition(":")
        old, equals, new = change.partition("=")
        if not colon or not equals:
            problems.append(f"--rename {text!r}: expected NAME:OLD=NEW")
        renames.setdefault(name, []).append((old, new))
    if problems:
        raise InputError(problems)
    return prepare(
        method,
        base,
        pairs,
        folder,
        values,
        task_specific=task_specific,
        rename=renames,
        dtype=dtype,
        memory=memory,
        device=device,
        overwrite=overwrite,
    )


def _pairs(texts: list[str], option: str, form: str, problems: list[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            problems.append(f"{option} {text!r}: expected {form}")
        pairs.append((name, value))
    return pairs


@contextmanager
def _errors(as_json: bool) -> Iterator[None]:
    """Errors as one clear text, or as JSON, with their exit code."""
    try:
        yield
    except FastmergeError as error:
        problems = getattr(error, "problems", [str(error)])
        if as_json:
            typer.echo(json.dumps({"error": type(error).__name__, "problems": problems}, indent=2))
        for problem in problems:
            err.print(f"[bold red]error:[/] {escape(problem)}", soft_wrap=True, highlight=False)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        err.print("stopped; no output is left")
        raise typer.Exit(130) from None


@contextmanager
def _progress(title: str, total: int, as_json: bool) -> Iterator[Callable[[int], None] | None]:
    """A bar with GB/s and time left, where someone sees it."""
    if as_json or not err.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as bar:
        row = bar.add_task(escape(title), total=total)
        yield lambda nbytes: bar.advance(row, nbytes)


def _show(report: Report, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
        return
    table = _table()
    table.add_row("wrote", escape(report.out))
    table.add_row("models", ", ".join(report.models))
    table.add_row("tensors", f"{report.tensors} ({report.parameters:,} parameters)")
    table.add_row("moved", f"{_size(report.bytes_read)} read, {_size(report.bytes_written)} written")
    table.add_row("time", f"{report.seconds:.2f} s, {report.gigabytes_per_second:.2f} GB/s, {report.backend} backend")
    for name, values in report.results.items():
        pairs = zip(report.models, values, strict=True)
        table.add_row(name, ", ".join(f"{model} {value:.4g}" for model, value in pairs))
    for note in report.notes:
        table.add_row("note", escape(note))
    out.print(table)


def _table() -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _size(nbytes: int) -> str:
    power = min(4, max(0, len(str(nbytes)) - 1) // 3)
    return f"{nbytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
