"""Merging a family's models as a row asks, and testing the result on every task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

import fastmerge as fm
from fastmerge import ops
from fastmerge.engine.state_dicts import Merged

from .domain import Family, State
from .methods import SAMPLES, Row

Scores = dict[str, float]  # by task


def evaluate(family: Family, rows: Iterable[Row], seed: int) -> list[Scores]:
    """Every row's mean test score on every task."""
    known: dict[str, Scores] = {}
    found = []
    for row in rows:
        if row.test() not in known:
            known[row.test()] = _evaluate(family, row, seed)
        found.append(known[row.test()])
    return found


def _evaluate(family: Family, row: Row, seed: int) -> Scores:
    tasks = list(family.models)[: row.tasks]
    if row.reading == "base":
        return _means(family, {task: family.base | family.head(task) for task in tasks})
    if row.reading == "individual":
        return _means(family, family.models)
    if row.reading == "multitask":
        return _means(family, family.multitask)
    if row.reading == "elected":
        return _means(family, elected(family, tasks, **row.parameters))
    merged = fm.merge_state_dicts(
        row.method,
        family.base,
        {task: family.models[task] for task in tasks},
        task_specific=family.domain.heads,
        **row.parameters,
    )
    if row.reading == "merged":
        return _means(family, {task: merged.state_dict | family.head(task) for task in tasks})
    if row.reading == "own":
        return _means(family, {task: merged.task(task) for task in tasks})
    return _routed(family, merged, _routes(family, merged, tasks, row.reading == "random", seed))


def _means(family: Family, states: dict[str, State]) -> Scores:
    return {task: family.scores(task, state).mean().item() for task, state in states.items()}


def elected(family: Family, tasks: Sequence[str], mask: bool = False, rescale: bool = False) -> dict[str, State]:
    """EMR's models without their masks, rescalers, or both (Huang et al. 2024, Table 8).

    Without masks a rescaler is Σ|τ_k| / Σ|unified|.
    """
    sums = torch.zeros(2, len(tasks), dtype=torch.float64)
    found = {
        name: ops.elect(base, [family.models[task][name] for task in tasks], sums=sums)
        for name, base in family.base.items()
    }
    magnitude, kept = sums
    below = kept if mask else sum(own.unified.double().abs().sum() for own in found.values())
    scales = (magnitude / below if rescale else torch.ones(len(tasks))).float().tolist()
    everything = {name: torch.full_like(own.masks, 0xFF) for name, own in found.items()}
    return {
        task: family.head(task)
        | {
            name: ops.modulate(family.base[name], own.unified, (own.masks if mask else everything[name])[k], scales[k])
            for name, own in found.items()
        }
        for k, task in enumerate(tasks)
    }


def _routes(family: Family, merged: Merged, tasks: list[str], chance: bool, seed: int) -> dict[str, list[str]]:
    """By task, which task's expert each of its test samples is given."""
    if chance:
        generator = torch.Generator().manual_seed(seed)
        counts = {task: len(family.domain.tasks[task].test[0]) for task in tasks}
        drawn = {task: torch.randint(len(tasks), (n,), generator=generator) for task, n in counts.items()}
        return {task: [tasks[k] for k in numbers.tolist()] for task, numbers in drawn.items()}
    router = family.router(merged.state_dict, tasks, SAMPLES)
    return {
        task: router.predict(family.features(task, merged.state_dict | family.head(task), "test")) for task in tasks
    }


def _routed(family: Family, merged: Merged, routes: dict[str, list[str]]) -> Scores:
    """Each sample with the expert that it was given. The head is that of its own task, as in the papers."""
    means = {}
    for task, given in routes.items():
        parts: list[Tensor] = []
        for expert in dict.fromkeys(given):
            own = {name: tensor for name, tensor in merged.task(expert).items() if name in family.base}
            rows = torch.tensor([i for i, name in enumerate(given) if name == expert])
            parts.append(family.scores(task, own | family.head(task), rows))
        means[task] = torch.cat(parts).mean().item()
    return means
