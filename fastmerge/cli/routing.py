"""Commands about the router of a folder of tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..interrupts import raised
from .app import JsonOption, app
from .output import echo_json, errors, out, show_rows

if TYPE_CHECKING:
    from ..runtime import Evaluation

router = typer.Typer(help="Train and evaluate the router of a folder of tasks.", no_args_is_help=True)
app.add_typer(router, name="router")

Folder = Annotated[Path, typer.Argument(help="an EMR artefact, or a folder of experts", metavar="DIR")]
DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="FILE", help='JSONL of {"text": …, "label": TASK}', show_default=False)
]
FeaturesOption = Annotated[
    Path | None,
    typer.Option(
        "--features", metavar="FILE", help="safetensors of features [N, D], and labels where there is no --data"
    ),
]
BaseOption = Annotated[str | None, typer.Option("--base", help="where an artefact's base model is now")]
BatchOption = Annotated[int, typer.Option("--batch", min=1, help="texts that the model computes at once")]
LengthOption = Annotated[int, typer.Option("--max-length", min=1, help="tokens after which a text is cut off")]
DeviceOption = Annotated[str, typer.Option("--device", help="of the model: auto, cpu, cuda, …")]


@router.command()
def train(
    folder: Folder,
    data: DataOption = None,
    features: FeaturesOption = None,
    validation: Annotated[float, typer.Option("--validation", help="share of each task's samples kept back")] = 0.2,
    seed: Annotated[int, typer.Option("--seed", help="of the choice of those")] = 0,
    base: BaseOption = None,
    device: DeviceOption = "auto",
    batch: BatchOption = 16,
    max_length: LengthOption = 512,
    as_json: JsonOption = False,
) -> None:
    """Train the router, write it into the folder, and say how well it does on samples kept back."""
    with errors(as_json):
        from ..runtime import train_router

        model = {"base": base, "device": device, "batch": batch, "max_length": max_length}
        with raised():
            made, found = train_router(folder, data, features, validation=validation, seed=seed, **model)
        content = {"router": str(folder), "features": made.width, "accuracy": made.accuracy}
        if as_json:
            return echo_json(content | {"held_out": found and found.to_dict()})
        show_rows({"wrote the router of": str(folder), "features": str(made.width)})
        show_rows({f"accuracy, {part}": f"{value:.2%}" for part, value in made.accuracy.items()})
        return _show_tasks(found) if found else None


@router.command(name="eval")
def evaluate(
    folder: Folder,
    data: DataOption = None,
    features: FeaturesOption = None,
    base: BaseOption = None,
    device: DeviceOption = "auto",
    batch: BatchOption = 16,
    max_length: LengthOption = 512,
    as_json: JsonOption = False,
) -> None:
    """How often the router chooses the right task, and which one where it does not."""
    with errors(as_json):
        from ..runtime import evaluate_router

        model = {"base": base, "device": device, "batch": batch, "max_length": max_length}
        with raised():
            found = evaluate_router(folder, data, features, **model)
        if as_json:
            return echo_json(found.to_dict())
        show_rows({"accuracy": f"{found.accuracy:.2%} of {found.samples} samples"})
        _show_tasks(found)
        return _show_confusion(found)


def _show_tasks(found: Evaluation) -> None:
    rows = {}
    for task in found.tasks:
        n, accuracy = found.of_task(task)
        rows[f"  {task}"] = "no samples" if accuracy is None else f"{accuracy:.2%} of {n}"
    show_rows(rows)


def _show_confusion(found: Evaluation) -> None:
    """Rows are the samples' tasks, columns those that were chosen."""
    table = Table(box=None, pad_edge=False)
    table.add_column("task \\ chosen", style="dim", no_wrap=True)
    for task in found.tasks:
        table.add_column(escape(task), justify="right")
    for task, row in zip(found.tasks, found.confusion.tolist(), strict=True):
        table.add_row(escape(task), *map(str, row))
    out.print(table)
