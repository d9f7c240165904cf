"""Which threads of this process keep cores busy, and how much of the machine does nothing (Linux)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

PERIOD = 0.02  # seconds between two looks: threads that have ended are known as they were last seen
TICK = 1 / os.sysconf("SC_CLK_TCK")


class Spent(NamedTuple):
    """Seconds of a core."""

    user: float
    system: float


def spent(task: Path) -> Spent | None:
    """What a thread has used; None where it has ended."""
    try:
        fields = (task / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return Spent(int(fields[11]) * TICK, int(fields[12]) * TICK)


def idle() -> float:
    """Seconds of all cores together."""
    return int(Path("/proc/stat").read_text().split(maxsplit=6)[4]) * TICK


def busy(do: Callable[[], object]) -> list[dict[str, Any]]:
    """What threads used while something was done, by kind: those of Python by name, all others as native."""
    seen: dict[int, Spent] = {}
    names: dict[int, str] = {}
    done = threading.Event()

    def look() -> None:
        names.update((thread.native_id or 0, thread.name.rstrip("0123456789-_")) for thread in threading.enumerate())
        for task in Path("/proc/self/task").iterdir():
            if (now := spent(task)) is not None:
                seen[int(task.name)] = now

    def watch() -> None:
        while not done.wait(PERIOD):
            look()

    look()
    before, idle_before = dict(seen), idle()
    watching = threading.Thread(target=watch, name="watching")
    watching.start()
    try:
        do()
    finally:
        done.set()
        watching.join()
    look()
    kinds: dict[str, list[Spent]] = {}
    for number, now in seen.items():
        user, system = (a - b for a, b in zip(now, before.get(number, Spent(0, 0)), strict=True))
        if user or system:
            kinds.setdefault(names.get(number, "native"), []).append(Spent(user, system))
    rows = [
        {"threads": kind, "count": len(own), "user": sum(s.user for s in own), "system": sum(s.system for s in own)}
        for kind, own in kinds.items()
    ]
    return [*rows, {"threads": "idle", "count": 0, "idle": idle() - idle_before}]
