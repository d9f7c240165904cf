"""Launch settings as data: settings.json, measured anew on a GPU by bench/gpu/tune.py. Importing measures nothing."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, fields
from pathlib import Path

FILE = Path(__file__).with_name("settings.json")


@dataclass(frozen=True)
class Settings:
    """`tile` elements at a time, on `warps` warps; up to `unrolled` models stay in registers, beyond that one kernel
    takes any number. A program that forms sums goes over `tiles` tiles, others over one."""

    tile: int
    warps: int
    unrolled: int
    tiles: int


@functools.cache
def table() -> dict[tuple[str, int], Settings]:
    """By op and bytes of the widest element; "*" is every op that has no entry of its own."""
    return {
        (entry["op"], entry["bytes"]): Settings(*(entry[field.name] for field in fields(Settings)))
        for entry in json.loads(FILE.read_text())
    }


def settings(widest: int, op: str = "*") -> Settings:
    """For inputs and outputs of at most `widest` bytes an element; without an op those that most have."""
    return table().get((op, widest)) or table()["*", widest]
