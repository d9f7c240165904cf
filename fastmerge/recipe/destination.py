"""Where a result goes, and what keeps it from going there."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def partial_folder(out: Path) -> Path:
    """Where the output `out` grows, and lies after a merge was stopped."""
    out = out.resolve()
    return out.parent / f".{out.name}.partial"


def output_problems(
    out: Path, total: int, inputs: Sequence[Path], *, overwrite: bool = False, resume: bool = False
) -> list[str]:
    """What keeps `total` bytes from being written to the folder `out`."""
    resolved = out.resolve()
    problems = [
        f"{out}: would overwrite the input {path}; choose another output folder"
        for path in (p.resolve() for p in inputs)
        if path == resolved or resolved in path.parents
    ]
    if out.exists() or out.is_symlink():
        if not overwrite and not (resume and partial_folder(out).is_dir()):
            problems.append(f"{out}: exists already; choose another output folder, or pass --overwrite")
        elif not out.is_dir() or out.is_symlink():
            problems.append(f"{out}: is no folder, and is not overwritten")
    parent = next(folder for folder in (*resolved.parents, resolved) if folder.exists())
    if not parent.is_dir():
        return [*problems, f"{out}: {parent} is no folder"]
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
