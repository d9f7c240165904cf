"""Merges stopped by tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


class Stop(Exception):  # noqa: N818 - an event, no error
    """What a test ends a merge with."""


def stop_after(tensors: int, error: type[BaseException] = Stop) -> Callable[[int], None]:
    """A progress that raises once this many chunks were read."""
    seen = iter(range(10**9))

    def progress(_: int) -> None:
        if next(seen) >= tensors:
            raise error

    return progress
