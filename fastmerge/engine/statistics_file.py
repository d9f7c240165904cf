"""Kept statistics on disk: `.fastmerge/statistics-KEY.safetensors` beside the output; KEY is the inputs' identity.

Whoever writes a file there removes those of inputs that have changed since, or are gone, which nobody can use any more.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch

from ..errors import InputError
from ..formats.safetensors import Header, read_header, write_header
from .journal import fsync_all
from .statistics import LIMIT, Kept

FORMAT = {"fastmerge.format": "statistics", "fastmerge.format_version": "1"}
DTYPE = "F64"

Entry = tuple[str, str, tuple[int, ...]]  # statistic:tensor, dtype, shape


def statistics_file(out: Path, key: str) -> Path:
    """Where statistics of the inputs `key` are kept beside the output `out`."""
    return out.resolve().parent / ".fastmerge" / f"statistics-{key}.safetensors"


def load(file: Path, key: str, limit: int) -> tuple[Kept, list[str]]:
    """What was kept, nothing where the file is not ours or damaged, and a note of that."""
    kept = Kept(limit=min(limit, LIMIT))
    try:
        if not file.exists():
            return kept, []
        header = read_header(file)
        data = bytearray(header.size if header.size <= 2 * LIMIT else 0)
        with file.open("rb") as stream:
            stream.readinto(data)
    except (InputError, OSError):
        return kept, [f"{file} cannot be read: statistics are gathered anew"]
    infos = list(header.tensors.values())
    entries = [(info.name, info.dtype, info.shape) for info in infos]
    content = memoryview(data)[min((info.start for info in infos), default=header.size) :]
    expected = _metadata(key, header.metadata.get("files", ""), entries, [content])
    if header.metadata != expected or any(info.dtype != DTYPE for info in infos):
        return kept, [f"{file} is damaged, or not of these inputs: statistics are gathered anew"]
    for info in infos:
        value = torch.frombuffer(data, dtype=torch.float64, count=info.numel, offset=info.start)
        statistic, _, tensor = info.name.partition(":")
        kept.put(statistic, tensor, value.view(info.shape))
    kept.changed = False
    return kept, []


def save(kept: Kept, file: Path, key: str, inputs: Iterable[Header], scratch: Path) -> None:
    """Write what is kept of the inputs to `file` in one step, by way of the file `scratch` of the same file system."""
    found = {
        f"{statistic}:{tensor}": value for (statistic, tensor), value in sorted(kept.found.items()) if value.nbytes
    }
    entries = [(name, DTYPE, tuple(value.shape)) for name, value in found.items()]
    parts = [value.contiguous().numpy().data.cast("B") for value in found.values()]
    files = json.dumps([[str(own.file.resolve()), own.size, own.modified] for own in inputs])
    header, _ = write_header(entries, _metadata(key, files, entries, parts))
    file.parent.mkdir(exist_ok=True)
    with scratch.open("wb") as stream:
        stream.writelines([header, *parts])
    fsync_all([scratch])
    os.replace(scratch, file)
    for other in file.parent.glob("statistics-*.safetensors"):
        if other != file and _is_of_the_past(other):
            with suppress(OSError):  # another process was faster, or it is not ours to remove
                other.unlink()


def _is_of_the_past(file: Path) -> bool:
    """Whether a file is of inputs that are not there any more as they were; not where it does not say of which."""
    try:
        for path, size, modified in json.loads(read_header(file).metadata["files"]):
            status = os.stat(path)
            if (status.st_size, status.st_mtime_ns) != (size, modified):
                return True
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (InputError, OSError, KeyError, TypeError, ValueError):
        pass
    return False


def _metadata(key: str, files: str, entries: Iterable[Entry], parts: Iterable[memoryview]) -> dict[str, str]:
    """What the file says of itself; a hash of all that it holds, so that no damage passes for statistics."""
    content = hashlib.sha256(json.dumps([files, *entries]).encode())
    for part in parts:
        content.update(part)
    return FORMAT | {"inputs": key, "files": files, "sha256": content.hexdigest()}
