"""The command of FW-Merging."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ..errors import InputError, attempt
from ..interrupts import raised
from .app import JsonOption, OverwriteOption, ResumeOption, app
from .output import echo_json, err, errors, out, show_rows, size

if TYPE_CHECKING:
    from ..engine.report import Report
    from ..fw import Result, Step

SHOWN = 4  # chosen models in a line
ENDS = {
    "gap": "the gap is at most the tolerance",
    "steps": "all steps are taken",
    "stalled": "no step makes the loss less",
    "callback": "stopped",
}


@app.command()
def fw(
    recipe: Annotated[Path, typer.Argument(help="a YAML file; README, section FW-Merging", metavar="RECIPE")],
    out_folder: Annotated[Path, typer.Option("--out", help="folder to write")],
    drawing: Annotated[Path | None, typer.Option("--draw", metavar="FILE.png", help="loss, gap and choices")] = None,
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Merge a pool by Frank-Wolfe optimisation on texts: which models, and how much of each."""
    with errors(as_json):
        from ..engine.spectrum_plot import check_drawing
        from ..fw.run import checked, checkpoint_of, run

        problems: list[str] = []
        if drawing is not None:
            attempt(problems, lambda: check_drawing(drawing, overwrite))
        if problems:
            attempt(problems, lambda: checked(recipe, out_folder, overwrite))
            raise InputError(problems)
        try:
            with raised():
                result, report = run(
                    recipe,
                    out_folder,
                    overwrite=overwrite,
                    resume=resume,
                    callback=None if as_json else _show_step,
                )
        except KeyboardInterrupt:
            if checkpoint_of(out_folder).is_file():
                err.print("the same command with --resume goes on from the last whole step")
            raise
        if drawing is not None:
            result.draw(drawing, overwrite=overwrite)
        if as_json:
            return echo_json(report.to_dict() | {"run": result.record.model_dump(mode="json")})
        return _show(result, report, drawing)


def _show_step(step: Step) -> None:
    """A line a step, as soon as it is done."""
    gap = "-" if step.gap is None else f"{step.gap:.4g}"
    line = f"step {step.number}: loss {step.loss:.6g}, gap {gap}"
    if step.vertices:
        counts: dict[str, int] = {}
        for row in step.vertices:
            for name in row:
                counts[name] = counts.get(name, 0) + 1
        most = sorted(counts, key=lambda name: -counts[name])
        of = f" of {len(step.vertices)} layers" if len(step.vertices) > 1 else ""
        told = [f"{name} ({counts[name]}{of})" if of else name for name in most[:SHOWN]]
        line += f", towards {', '.join(told)}{' and others' if len(most) > SHOWN else ''}"
        if len(step.weights) == 1:
            line += f" by {', '.join(f'{weight:.3g}' for weight in step.weights[0][:SHOWN])}"
    out.print(f"{escape(line)} [dim]({sum(step.seconds.values()):.1f} s)[/]", soft_wrap=True, highlight=False)


def _show(result: Result, report: Report, drawing: Path | None) -> None:
    record = result.record
    rows = [
        ("wrote", report.out),
        ("loss", f"{result.steps[0].loss:.6g} → {result.loss:.6g} in {len(result.steps)} steps"),
        ("ended", ENDS[record.ended or "steps"]),
        ("moved", f"{size(report.bytes_read)} read, {size(report.bytes_written)} written"),
    ]
    columns = list(zip(*(record.coefficients or []), strict=True))
    shares = {n: sum(column) / len(column) for n, column in zip(record.candidates, columns, strict=True)}
    told = [f"{name} {share:.4g}" for name, share in shares.items() if share]
    rows.append(("coefficients" if len(record.rows) == 1 else "mean coefficients", ", ".join(told)))
    rows += [("drawn", str(drawing))] if drawing is not None else []
    show_rows(rows + [("note", note) for note in record.notes])
