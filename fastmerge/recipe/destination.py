"""Where a result goes, and what keeps it from going there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import InputError
from ..formats.folder import RECORDS, SUFFIXES
from ..formats.safetensors import limited


def output_folder(out: str | Path) -> Path:
    """The folder that is meant: "~" is expanded, "." and ".." are, links before the last name are followed there."""
    if "\0" in str(out):
        raise InputError(f"{str(out)!r}: NUL is in no folder's name; choose another output folder")
    try:
        folder = Path(out).expanduser()
        if folder.name in ("", ".."):
            return folder.resolve()
        return folder.parent.resolve() / folder.name if ".." in folder.parts else folder
    except OSError as error:
        raise InputError(f"{out}: cannot be looked at: {error.strerror}; choose another output folder") from None
    except RuntimeError as error:  # ~name of nobody, or links in a circle
        raise InputError(f"{out}: {error}; give the folder in full") from None


def partial_folder(out: Path) -> Path:
    """Where the output `out` grows, and lies after a merge was stopped."""
    out = out.expanduser().resolve()
    return out.parent / f".{out.name}.partial"


def overwritten(out: Path, inputs: Sequence[Path]) -> list[str]:
    """Which inputs would go with the folder `out` that a result replaces."""
    resolved = out.resolve()
    within = dict.fromkeys(p for p in (p.resolve() for p in inputs) if p == resolved or resolved in p.parents)
    whole = [path for path in within if not any(parent in within for parent in path.parents)]
    return limited(whole, lambda path: f"{out}: would overwrite the input {path}; choose another output folder")


def foreign(folder: Path, outputs: Collection[str] | None = ()) -> str | None:
    """What in a folder fastmerge cannot have written, the first by name; None where it may have written all.

    `outputs`: names of folders in it that it may have written, of a merge with several results; None: any may be.
    """
    names = sorted(os.listdir(folder))
    if RECORDS & {*names}:
        return next((name for name in names if not _is_of_a_model(folder / name)), None)

    def is_result(name: str) -> bool:
        inner = folder / name
        there = (outputs is None or name in outputs) and inner.is_dir() and not inner.is_symlink()
        return there and bool(RECORDS & {*os.listdir(inner)}) and foreign(inner) is None

    return next((name for name in names if not is_result(name)), None)


def _is_of_a_model(path: Path) -> bool:
    """Whether it has the name of something in a merged model's folder."""
    if path.is_dir():
        return path.name in ("experts", "tasks")
    return path.suffix in SUFFIXES | {".safetensors", ".md"}


def output_problems(
    out: Path,
    total: int,
    inputs: Sequence[Path],
    *,
    overwrite: bool = False,
    resume: bool = False,
    outputs: Collection[str] | None = (),
) -> list[str]:
    """What keeps `total` bytes from being written to the folder `out`, or to folders in it, as `foreign` has them."""
    try:
        lost = overwritten(out, inputs)
        others = _lost_with(out, outputs) if overwrite and not lost else []
        return lost + _place_problems(out, total, overwrite, resume) + others
    except (OSError, RuntimeError) as error:  # no permission, a name that is too long, links in a circle
        why = getattr(error, "strerror", None) or error
        return [f"{out}: cannot be written to: {why}; choose another output folder"]


def _place_problems(out: Path, total: int, overwrite: bool, resume: bool) -> list[str]:
    resolved, problems = out.resolve(), []
    with suppress(FileNotFoundError, NotADirectoryError):
        partial_folder(out).lstat()  # its name is longer than the output's
    if out.exists() or out.is_symlink():
        if not overwrite and not (resume and partial_folder(out).is_dir()):
            problems.append(f"{out}: exists already; choose another output folder, or pass --overwrite")
        elif not out.is_dir() or out.is_symlink():
            problems.append(f"{out}: is no folder, and is not overwritten")
    parent = next(folder for folder in (*resolved.parents, resolved) if folder.exists())
    if not parent.is_dir():
        return [*problems, f"{out}: {parent} is no folder"]
    if not os.access(parent, os.W_OK | os.X_OK):
        problems.append(f"{out}: {parent} cannot be written to; choose another output folder")
    free = shutil.disk_usage(parent).free + _disk_bytes(partial_folder(out))  # which is gone on with, or replaced
    if total > free:
        problems.append(f"{out}: the result takes {total:,} bytes, {parent} has {free:,} free; make room")
    return problems


def _lost_with(out: Path, outputs: Collection[str] | None) -> list[str]:
    """Why a folder is not replaced whole: it has what is not of a merge, or is a place that more depends on."""
    if out.is_symlink() or not out.is_dir():
        return []
    resolved = out.resolve()
    home = Path(os.path.expanduser("~")).resolve()  # "~" here where there is none
    if home == resolved or resolved in home.parents:
        return [f"{out}: is your home folder, or holds it, and is not overwritten; choose another output folder"]
    if os.path.ismount(resolved):
        return [f"{out}: is where a file system is mounted, and is not overwritten; choose a folder in it"]
    other = foreign(out, outputs)
    if other is None:
        return []
    return [
        f"{out}: has {other!r}, which fastmerge did not write, and --overwrite would replace the whole folder; choose "
        "another output folder, or move what is there"
    ]


def _disk_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # another merge may be at work there
            total += path.lstat().st_blocks * 512
    return total
