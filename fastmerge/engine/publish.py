"""Outputs appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from ..errors import MergeError


class Publication:
    """A hidden folder beside `out`, renamed to it when the context is left without an error, else removed."""

    def __init__(self, out: Path, overwrite: bool) -> None:
        self.out = out
        self.overwrite = overwrite

    def __enter__(self) -> Path:
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            name = tempfile.mkdtemp(prefix=f".{self.out.name}.", suffix=".partial", dir=self.out.parent)
        except OSError as error:
            raise MergeError(f"{self.out.parent}: cannot be written to: {error.strerror}") from None
        self.folder = Path(name)
        self.folder.chmod(0o755)
        return self.folder

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        try:
            if failure is None:
                self._publish()
        finally:
            if self.folder.exists():
                shutil.rmtree(self.folder, ignore_errors=True)

    def _publish(self) -> None:
        for path in self.folder.rglob("*"):
            _fsync(path)
        _fsync(self.folder)
        old = None
        if self.out.exists():
            if not self.overwrite:
                raise MergeError(f"{self.out}: has appeared while merging, and is not overwritten")
            old = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.", suffix=".old", dir=self.out.parent))
            self.out.rename(old / "folder")
        self.folder.rename(self.out)
        _fsync(self.out.parent)
        if old:
            shutil.rmtree(old, ignore_errors=True)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
