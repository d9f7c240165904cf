"""The command that makes adapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..interrupts import raised
from .app import JsonOption, OverwriteOption, SpecificOption, app
from .output import echo_json, errors, progress, show_rows

if TYPE_CHECKING:
    from ..engine.extract import Extraction

SHOWN = 5  # tensors of which least is kept


@app.command(name="extract-lora")
def extract_lora(
    base: Annotated[str, typer.Argument(help="the pre-trained model: folder, file or Hub name", metavar="BASE")],
    model: Annotated[str, typer.Argument(help="a fine-tuned or merged model", metavar="MODEL")],
    out_folder: Annotated[Path, typer.Option("--out", help="folder to write, which peft loads")],
    rank: Annotated[int, typer.Option("--rank", help="of the adapter's matrices")] = 16,
    tensors: Annotated[
        list[str], typer.Option("--tensors", metavar="PATTERN", help="matrices to take; all but embeddings and heads")
    ] = [],  # noqa: B006 - typer reads defaults, nothing writes to them
    task_specific: SpecificOption = [],  # noqa: B006
    dtype: Annotated[str, typer.Option("--dtype", help="of the adapter")] = "float32",
    seed: Annotated[int, typer.Option("--seed", help="of the randomised decomposition")] = 0,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """A model as a LoRA adapter of its base, and how much of the model that keeps."""
    with errors(as_json):
        from ..engine.extract import extract_lora as run

        with raised(), progress(f"{model} as an adapter", as_json) as advance:
            found = run(
                base,
                model,
                out_folder,
                rank=rank,
                tensors=tensors,
                task_specific=task_specific,
                dtype=dtype,
                seed=seed,
                overwrite=overwrite,
                progress=advance,
            )
        if as_json:
            return echo_json(found.to_dict())
        return _show(found)


def _show(found: Extraction) -> None:
    least = sorted(found.kept.items(), key=lambda entry: entry[1])[:SHOWN]
    rows = [
        ("wrote", found.out),
        ("adapter", f"rank {found.rank}, {len(found.kept)} matrices, {found.parameters:,} parameters"),
        ("energy kept", f"{found.total:.2%} of what the model differs by"),
        ("least kept", ", ".join(f"{name} {kept:.2%}" for name, kept in least)),
    ]
    show_rows(rows + [("note", note) for note in found.notes])
