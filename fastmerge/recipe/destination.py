"""Where a result goes, and what keeps it from going there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import InputError
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


def output_problems(
    out: Path, total: int, inputs: Sequence[Path], *, overwrite: bool = False, resume: bool = False
) -> list[str]:
    """What keeps `total` bytes from being written to the folder `out`."""
    try:
        return overwritten(out, inputs) + _place_problems(out, total, overwrite, resume)
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


def _disk_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # another merge may be at work there
            total += path.lstat().st_blocks * 512
    return total
