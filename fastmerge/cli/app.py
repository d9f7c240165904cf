"""The program, and options that several commands take."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..errors import InputError

app = typer.Typer(
    name="fastmerge",
    help="Merge fine-tuned checkpoints of one base model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

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
VocabOption = Annotated[
    str,
    typer.Option("--vocab", help="embeddings of different lengths: error, base (keep base's rows) or pad (keep all)"),
]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="of the result; base's by default")]
MemoryOption = Annotated[str, typer.Option("--memory", help="bound of the buffers")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="of random methods; short for -p seed=N")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, or cuda:0,cuda:1")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="replace the output folder, if fastmerge wrote it")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="go on where the same command was stopped")]
HashOption = Annotated[bool, typer.Option("--hash", help="record hashes of all files, for verify")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON, for programs")]


def pairs(texts: list[str], option: str, form: str, problems: list[str]) -> list[tuple[str, str]]:
    """NAME=VALUE texts of an option, split, but for those that are none."""
    found = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            problems.append(f"{option} {text!r}: expected {form}")
            continue
        found.append((name, value))
    return found


def nested(named: list[tuple[str, str]], problems: list[str]) -> dict[str, Any]:
    """Parameters by name; `prefilter.cutoff` is the cutoff of the parameter prefilter."""
    found: dict[str, Any] = {}
    names: set[str] = set()
    for name, value in named:
        outer, dot, inner = name.partition(".")
        if name in names:
            problems.append(f"-p {name} is given twice; leave one out")
        names.add(name)
        if not dot:
            found[name] = value
        elif isinstance(found.setdefault(outer, {}), dict):
            found[outer][inner] = value
        else:
            problems.append(f"-p {name}: {outer} is given as a whole too; leave one out")
    return found


def renames(texts: list[str], problems: list[str]) -> dict[str, list[tuple[str, str]]]:
    """--rename NAME:OLD=NEW by name, but for those that are none."""
    found: dict[str, list[tuple[str, str]]] = {}
    for text in texts:
        name, colon, change = text.partition(":")
        old, equals, new = change.partition("=")
        if not colon or not equals:
            problems.append(f"--rename {text!r}: expected NAME:OLD=NEW")
            continue
        found.setdefault(name, []).append((old, new))
    return found


def check(problems: list[str]) -> None:
    """Raise what is wrong with options."""
    if problems:
        raise InputError(problems)


def _version(show: bool) -> None:
    if show:
        from .. import __version__

        typer.echo(f"fastmerge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print it")] = False,
) -> None:
    pass
