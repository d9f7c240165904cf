"""SHA-256 of whole files, several at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PIECE = 1 << 22  # bytes


def hash_files(files: Iterable[Path]) -> dict[Path, str]:
    """The hash of every file."""
    paths = list(dict.fromkeys(files))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(paths, pool.map(_hash, paths), strict=True))


def _hash(path: Path) -> str:
    content = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while piece := stream.read(PIECE):
            content.update(piece)
    return content.hexdigest()
