"""The command that looks at task vectors by frequency."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import InputError, attempt
from ..interrupts import raised
from .app import JsonOption, RenameOption, SpecificOption, app, pairs, renames
from .output import echo_json, errors, out, progress, show_rows

if TYPE_CHECKING:
    from ..engine.spectrum import Spectrum

STEP = 4  # rings from one row of the table to the next
LAST = 40


@app.command()
def spectrum(
    base: Annotated[str, typer.Argument(help="the pre-trained model: folder, file or Hub name", metavar="BASE")],
    models: Annotated[list[str], typer.Argument(help="fine-tuned models, called as they lie", metavar="MODEL")] = [],  # noqa: B006 - typer reads defaults, nothing writes to them
    model: Annotated[list[str], typer.Option("--model", metavar="NAME=PATH", help="one with a name; repeat")] = [],  # noqa: B006
    drawing: Annotated[Path | None, typer.Option("--out", metavar="FILE.png", help="draw it, by matplotlib")] = None,
    cutoff: Annotated[float, typer.Option("--cutoff", help="of the filter that is tried")] = 0.3,
    tensors: Annotated[
        list[str], typer.Option("--tensors", metavar="PATTERN", help="matrices to look at, those fr filters by default")
    ] = [],  # noqa: B006
    max_tensors: Annotated[int, typer.Option("--max-tensors", help="so many of them by chance, 0 for all")] = 32,
    task_specific: SpecificOption = [],  # noqa: B006
    rename: RenameOption = [],  # noqa: B006
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the drawing")] = False,
    as_json: JsonOption = False,
) -> None:
    """Task vectors by frequency, and how much they interfere: what a cutoff is chosen by."""
    with errors(as_json):
        problems: list[str] = []
        named = [(_name(path), path) for path in models] + pairs(model, "--model", "NAME=PATH", problems)
        renamed = renames(rename, problems)
        from ..engine.spectrum import checked
        from ..engine.spectrum import spectrum as run
        from ..engine.spectrum_plot import check_drawing

        if drawing is not None:
            attempt(problems, lambda: check_drawing(drawing, overwrite))
        if problems:
            attempt(problems, lambda: checked(base, named, cutoff, tensors, max_tensors, task_specific, renamed))
            raise InputError(problems)
        with raised(), progress("spectrum", as_json) as advance:
            found = run(
                base,
                named,
                cutoff=cutoff,
                tensors=tensors,
                max_tensors=max_tensors,
                task_specific=task_specific,
                rename=renamed,
                progress=advance,
            )
            if drawing is not None:
                found.draw(drawing, overwrite=overwrite)
        if as_json:
            return echo_json(found.to_dict() | {"out": None if drawing is None else str(drawing)})
        return _show(found, drawing)


def _name(path: str) -> str:
    """What a model is called that has no name of its own."""
    return Path(path).expanduser().resolve().name.removesuffix(".safetensors")


def _show(found: Spectrum, drawing: Path | None) -> None:
    """What filters leave, by their cutoffs."""
    table = Table(box=None, pad_edge=False)
    table.add_column("cutoff", justify="right")
    for heading in ("interference", *(f"power of {escape(name)}" for name in found.models)):
        table.add_column(heading, justify="right", overflow="fold")
    for ring in range(0, LAST + 1, STEP):
        left = None if found.interference_left is None else found.interference_left[ring]
        powers = [found.power_left[name][ring] for name in found.models]
        table.add_row(f"{found.radii[ring]:g}", _share(left, found.before), *(f"{power:.1%}" for power in powers))
    out.print(table)
    rows = [("matrices", f"those of {len(found.tensors)} tensors of {found.candidates}")]
    if found.before is not None and found.after is not None:
        change = _share(found.after, found.before)
        rows.append((f"interference at {found.cutoff:g}", f"{found.before:.4g} → {found.after:.4g} ({change} left)"))
    kept = ", ".join(f"{name} {share:.1%}" for name, share in found.power_kept.items())
    rows.append((f"power kept at {found.cutoff:g}", kept))
    rows += [("drawn", str(drawing))] if drawing is not None else []
    show_rows(rows + [("note", note) for note in found.notes])


def _share(left: float | None, before: float | None) -> str:
    return "-" if left is None or not before else f"{left / before:.1%}"
