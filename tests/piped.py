"""Merges through the pipeline of GPUs, by devices that are the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import near, state, write
from host_device import HostDevice

from fastmerge.engine import feed, merge, pipeline, writer
from fastmerge.engine.devices import Event
from fastmerge.engine.feed import Feed, Load
from fastmerge.engine.outlet import LEAST_PART
from fastmerge.engine.pipeline import Pipeline
from fastmerge.ops import BLOCK
from fastmerge.recipe.merge_plan import MergePlan
from fastmerge.recipe.plan import plan

SHAPES = {
    "model.layers.0.mlp.up.weight": (501, 700),  # more than five blocks
    "model.layers.0.mlp.down.weight": (300, 500),
    "model.layers.0.bias": (33,),
    "model.norm.weight": (1,),
    "model.empty": (0, 4),
}

# Each is a load of its own where 8 blocks are computed at a time.
MANY = {f"model.layers.{i}.up.weight": (301, 1401) for i in range(24)}

METHODS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"weights": 0.3},
    "emr": {},
    "ties": {"density": 0.3},
    "dare_ties": {"density": 0.4},
    "della": {"density": 0.5},
    "free": {"expert_density": 0.02},
    "fr": {},
    "slerp": {"t": 0.4},
}


def planned(
    checkpoints: tuple[Path, dict[str, Path]], method: str, out: Path, blocks: int = 2, **options: Any
) -> MergePlan:
    base, models = checkpoints
    used = dict(list(models.items())[:1]) if method == "slerp" else models
    made = plan(method, base, used, out, METHODS[method], **{"device": "cpu"} | options)
    return replace(made, chunk=blocks * BLOCK)


def crowded(monkeypatch: pytest.MonkeyPatch) -> list[Load]:
    """Every memory of the pipeline is used again and again, by merges of MANY. Returns a list that all loads go to."""
    for module in (feed, pipeline):
        monkeypatch.setattr(module, "ROOMS", 2)
    monkeypatch.setattr(Pipeline, "SLOTS", 2)
    monkeypatch.setattr(pipeline, "STAGING", 1 << 20)
    monkeypatch.setattr(pipeline, "PART", LEAST_PART)
    monkeypatch.setattr(writer, "PIECE", 1 << 20)
    loads, done = list[Load](), Feed.done

    def told(feed: Feed, load: Load, used: Event) -> None:
        loads.append(load)
        done(feed, load, used)

    monkeypatch.setattr(Feed, "done", told)
    return loads


def piped(
    monkeypatch: pytest.MonkeyPatch,
    made: MergePlan,
    devices: Sequence[HostDevice],
    done: Callable[..., None] | None = None,
) -> None:
    """Carry out a plan on these devices."""
    monkeypatch.setattr(merge, "open_devices", lambda _: devices)
    merge.execute(made, done)
    assert not any(device.disturbed() for device in devices)


def checkpoints_in(root: Path) -> tuple[Path, dict[str, Path]]:
    """A base and three models, with a tensor of integers."""
    base = state(0, torch.bfloat16, SHAPES)
    integers = {"ids": torch.arange(70_000)}
    models = {f"m{k}": write(root / f"m{k}", near(base, k + 1) | integers) for k in range(3)}
    return write(root / "base", base | integers), models
