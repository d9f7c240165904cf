"""What of a merge is finished, so that one that was stopped can go on.

A file of JSON lines: the fingerprint of the merge, then for every pass one line a finished tensor, with its sums.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Fingerprint = Mapping[str, Any]  # whatever decides the bytes of the result, by a name that a person understands


@dataclass(slots=True)
class Journal:
    """`folder` is the inode of the folder that becomes the output; `finished` the sums of the works of each pass."""

    file: Path
    fingerprint: Fingerprint
    folder: int
    finished: dict[int, dict[int, list[Tensor]]] = field(default_factory=dict)

    @classmethod
    def begin(cls, file: Path, fingerprint: Fingerprint, folder: int) -> Journal:
        """A new journal."""
        journal = cls(file, json.loads(_line(fingerprint)), folder)
        journal.append([_line({"folder": folder, "merge": fingerprint})])
        return journal

    @classmethod
    def read(cls, file: Path) -> Journal | None:
        """The journal of a merge that was stopped, None where it had not begun. A line cut short is cut off."""
        if not file.is_file():
            return None
        journal, whole = None, 0
        with file.open("rb") as stream:
            for text in stream:
                try:
                    content = json.loads(text if text.endswith(b"\n") else b"")
                    if journal is None:
                        journal = cls(file, content["merge"], content["folder"])
                    else:
                        sums = [_unpacked(one) for one in content["sums"]]
                        journal.finished.setdefault(content["pass"], {})[content["work"]] = sums
                except (ValueError, KeyError, TypeError, zlib.error):
                    break
                whole += len(text)
        os.truncate(file, whole)
        return journal

    def append(self, lines: Iterable[bytes]) -> None:
        """Add lines, and wait until they are on the disk."""
        with self.file.open("ab") as stream:
            stream.writelines(lines)
            stream.flush()
            os.fsync(stream.fileno())

    def differences(self, fingerprint: Fingerprint) -> list[str]:
        """In what another merge differs from this one."""
        before, now = self.fingerprint, json.loads(_line(fingerprint))
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        return [_difference(name, before.get(name), now.get(name)) for name in changed]


def line(number: int, work: int, sums: Sequence[Tensor]) -> bytes:
    """The line of a finished tensor: the `work`-th of pass `number`."""
    return _line({"pass": number, "work": work, "sums": [_packed(one) for one in sums]})


def _packed(sums: Tensor) -> str:
    """float64 to the bit; histograms are mostly zeros."""
    return base64.b64encode(zlib.compress(sums.numpy().tobytes(), 1)).decode()


def _unpacked(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(zlib.decompress(base64.b64decode(text)), np.float64).copy())


def fsync_all(paths: Iterable[Path]) -> None:
    """Wait until files and folders are on the disk."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":"), default=str).encode() + b"\n"


def _difference(name: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return f"{name} has changed ({', '.join(keys)})"
    if isinstance(before, dict) or isinstance(now, dict):
        return f"{name} is {'new' if before is None else 'gone'}"
    return f"{name} was {json.dumps(before)}, is {json.dumps(now)}"
