"""Launch settings as data: settings.json, measured anew on a GPU by bench/gpu/tune.py. Importing measures nothing."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("settings.json")


@dataclass(frozen=True)
class Settings:
    """`tile` elements at a time, on `warps` warps; up to `unrolled` models stay in registers, beyond that one kernel
    takes any number. A program that forms sums, counts or combines goes over `tiles` tiles, others over one."""

    tile: int
    warps: int
    unrolled: int
    tiles: int


Key = tuple[str, int, bool]  # op or form of one, bytes of the widest element, whether all addresses are aligned


def key(entry: dict[str, Any]) -> Key:
    return entry["op"], entry["bytes"], entry.get("aligned", True)


@functools.cache
def table() -> dict[Key, Settings]:
    """By key. "*" is every op that has no entry of its own; combine has more of them, for where it drops, where it
    selects otherwise or votes, and where both; those of tensors that are not aligned are exceptions."""
    return {
        key(entry): Settings(*(entry[field.name] for field in fields(Settings)))
        for entry in json.loads(FILE.read_text())
    }


def settings(widest: int, op: str = "*", aligned: bool = True) -> Settings:
    """For inputs and outputs of at most `widest` bytes an element; without an op those that most have."""
    return table().get((op, widest, aligned)) or table().get((op, widest, True)) or table()["*", widest, True]
