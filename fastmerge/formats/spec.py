"""How a model is named: a place, or a place and an adapter on top of it; a place is local, or the Hub's at a revision.

DIR            FILE.safetensors            org/name            org/name@revision
MODEL+ADAPTER  each of the forms above: the model, with the adapter merged into it
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError

HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+?)(?:@([\w./-]+))?")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """`model` is a place, `adapter` that of an adapter on top of it."""

    model: str
    adapter: str | None = None

    def __str__(self) -> str:
        return self.model if self.adapter is None else f"{self.model}+{self.adapter}"

    def relative_to(self, folder: Path) -> ModelSpec:
        """The spec with its local places taken from a folder; what could be the Hub's stays what it is."""
        return ModelSpec(_from(folder, self.model), self.adapter and _from(folder, self.adapter))


def parse_spec(text: str | Path, folder: Path | None = None) -> ModelSpec:
    """Split MODEL+ADAPTER. A path that exists, from `folder` on, is a place as a whole, whatever is in its name.

    Of several "+" the one counts that leaves a place that exists on its left, else the first. Raises InputError where a
    side is empty.
    """
    text = os.fspath(text)
    if "+" not in text or _exists(text, folder):
        return ModelSpec(text)
    cuts = [i for i, letter in enumerate(text) if letter == "+"]
    cut = next((i for i in reversed(cuts) if _exists(text[:i], folder)), cuts[0])
    model, adapter = text[:cut], text[cut + 1 :]
    if not model or not adapter:
        raise InputError(f"{text}: expected MODEL+ADAPTER, the places of a model and of an adapter for it")
    return ModelSpec(model, adapter)


def local_path(text: str | Path) -> Path:
    """A place on this disk, with its "~" expanded. Raises InputError where that cannot be."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~name of nobody
        raise InputError(f"{text}: {error}; give the folder in full") from None


def hub_id(place: str) -> tuple[str, str | None] | None:
    """The id and the revision ("org/name@revision") of a place that could be the Hub's; None for others."""
    match = HUB_ID.fullmatch(place)
    return None if match is None else (match[1], match[2])


def recorded(source: str, label: str) -> str:
    """A place as records have it; those of the Hub have a commit, so that others are not looked for there."""
    spec = parse_spec(source)
    for place in (spec.model, *([] if spec.adapter is None else [spec.adapter])):
        found = hub_id(place)
        if found is not None and found[1] is None and not _exists(place):
            raise InputError(f"{label}: {place} does not exist here")
    return source


def _exists(place: str, folder: Path | None = None) -> bool:
    try:
        path = Path(place).expanduser()
        return bool(place) and (path if folder is None else folder / path).exists()
    except (OSError, RuntimeError, ValueError):  # a name longer than the file system takes, ~nobody, NUL
        return False


def _from(folder: Path, place: str) -> str:
    if place.startswith("~"):
        return place
    local = folder / place
    return place if hub_id(place) and not (local.exists() or local.parent.is_dir()) else str(local)
