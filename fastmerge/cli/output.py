"""What commands say: tables for people, JSON for programs, errors with their exit codes, a bar while they wait."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import FastmergeError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from ..engine.report import Report

WIDE = 100_000  # letters: what reads a table where no terminal is finds every row in one line

out = Console(width=None if sys.stdout.isatty() else WIDE)
err = Console(stderr=True)


@contextmanager
def errors(as_json: bool, out_folder: Path | None = None) -> Iterator[None]:
    """Errors as one clear text, or as JSON, with their exit code; a stop may leave `out_folder` to be resumed."""
    try:
        yield
    except FastmergeError as error:
        problems = getattr(error, "problems", [str(error)])
        if as_json:
            echo_json({"error": type(error).__name__, "problems": problems})
        for problem in problems:
            err.print(f"[bold red]error:[/] {escape(problem)}", soft_wrap=True, highlight=False)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt as stop:
        from ..recipe.destination import partial_folder

        resumable = out_folder is not None and partial_folder(out_folder).is_dir()
        err.print("stopped; the same command with --resume goes on from here" if resumable else "stopped")
        raise typer.Exit(getattr(stop, "exit_code", 130)) from None


@contextmanager
def progress(title: str, as_json: bool) -> Iterator[Callable[[int], None] | None]:
    """A bar with GB/s and, once it is told how much is to come, time left, if someone sees it."""
    if as_json or not err.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as bar:
        yield _Row(bar, bar.add_task(escape(title), total=None))


class _Row:
    """A row of a bar, as jobs tell their progress."""

    def __init__(self, bar: Progress, row: TaskID) -> None:
        self._bar, self._row, self._total = bar, row, 0

    def __call__(self, nbytes: int) -> None:
        self._bar.advance(self._row, nbytes)

    def expect(self, nbytes: int) -> None:
        self._total += nbytes
        self._bar.update(self._row, total=self._total)


def echo_json(content: Any) -> None:
    """JSON alone on stdout."""
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))


def show_rows(rows: Mapping[str, str] | list[tuple[str, str]]) -> None:
    """Names and what they are."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows.items() if isinstance(rows, Mapping) else rows:
        table.add_row(escape(name), escape(text))
    out.print(table)


def show_report(report: Report, as_json: bool) -> None:
    """What a finished job tells."""
    if as_json:
        return echo_json(report.to_dict())
    rows = [
        ("wrote", report.out),
        *([("outputs", ", ".join(report.outputs))] if report.outputs else []),
        ("models", ", ".join(report.models)),
        ("tensors", f"{report.tensors} ({report.parameters:,} parameters)"),
        ("moved", f"{size(report.bytes_read)} read, {size(report.bytes_written)} written"),
        ("time", f"{report.seconds:.2f} s, {report.gigabytes_per_second:.2f} GB/s, {report.backend} backend"),
    ]
    told = report.results if len(report.results) <= 12 else {}
    if report.results and not told:
        rows.append(("numbers", f"{len(report.results)} rows, in fastmerge.json"))
    for name, values in told.items():
        numbers = zip(report.models, values, strict=True)
        rows.append((name, ", ".join(f"{model} {value:.4g}" for model, value in numbers)))
    return show_rows(rows + [("note", note) for note in report.notes])


def size(nbytes: int) -> str:
    """Bytes for people."""
    power = min(4, max(0, len(str(nbytes)) - 1) // 3)
    return f"{nbytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
