"""Whole merges by the command line against mergekit's, on one family in one run, alternating.

Times are from the process's start to its end, start-up included on both sides; memory is what the process holds beyond
the mapped files. What both wrote is compared before a number is given.
"""

from __future__ import annotations

import math
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import by_mergekit
from family import tensors, write
from harness import Process, read_all, run_process
from safetensors import safe_open

from fastmerge import methods

PROGRAM = str(Path(sys.executable).with_name("fastmerge"))
ROUNDS = 3


@dataclass(frozen=True)
class Job:
    method: str
    params: dict[str, Any] = field(default_factory=dict)
    models: int = 3
    alike: bool = False  # nothing is drawn and no tie broken: both must give the same but for rounding
    mergekit_rounds: int = ROUNDS

    def __str__(self) -> str:
        return ", ".join([self.method, *(f"{name} {value}" for name, value in self.params.items())])


# rescale=l1 is what mergekit does.
JOBS = (
    Job("linear", alike=True),
    Job("task_arithmetic", {"scale": 0.3}, alike=True),
    Job("slerp", {"t": 0.5}, models=1, alike=True),
    Job("ties", {"density": 0.2}, mergekit_rounds=1),
    Job("dare_ties", {"density": 0.5, "rescale": "l1"}, mergekit_rounds=1),
    Job("della", {"density": 0.5, "epsilon": 0.1, "rescale": "l1"}, mergekit_rounds=1),
    Job("breadcrumbs", {"density": 0.9, "gamma": 0.01}, mergekit_rounds=1),
)


def fastmerge_command(job: Job, base: Path, models: list[Path], out: Path) -> list[str]:
    named = [part for model in models for part in ("--model", f"{model.name}={model}")]
    params = [part for name, value in job.params.items() for part in ("-p", f"{name}={value}")]
    return [PROGRAM, "merge", job.method, "--base", str(base), *named, "--out", str(out), *params]


def files_of(folder: Path) -> dict[str, Path]:
    """The file that holds each tensor."""
    files = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as content:
            files |= dict.fromkeys(content.keys(), file)
    return files


def check(mine: Path, theirs: Path, alike: bool) -> None:
    """Both hold the same tensors, finite; where they must be alike, no further apart than rounding explains.

    Each rounds its result to bfloat16, by 2⁻⁹ at most, and mergekit its task vectors too.
    """
    files, others = files_of(mine), files_of(theirs)
    if files.keys() != others.keys():
        raise SystemExit(f"the merged models have different tensors: {sorted(files.keys() ^ others.keys())[:5]}")
    for name, file in files.items():
        with safe_open(file, "pt") as a, safe_open(others[name], "pt") as b:
            x, y = a.get_tensor(name).float(), b.get_tensor(name).float()
        if not (x.isfinite().all() and y.isfinite().all()):
            raise SystemExit(f"{name}: a merged model is not finite")
        apart = float((x - y).norm() / x.norm())
        if alike and not apart <= 2**-8:
            raise SystemExit(f"{name}: the merged models are {apart:.2g} of their norm apart")


def measure(job: Job, base: Path, models: list[Path], scratch: Path) -> dict[str, Any]:
    """The job by both, in turns."""
    mine, theirs = scratch / "fastmerge", scratch / "mergekit"
    recipe = by_mergekit.recipe(job.method, job.params, base, models)
    command = by_mergekit.command(scratch / "recipe.yaml", recipe, theirs)
    read_all([file for folder in (base, *models) for file in folder.glob("*.safetensors")])
    runs: dict[str, list[Process]] = {"fastmerge": [], "mergekit": []}
    for turn in range(ROUNDS):
        shutil.rmtree(mine, ignore_errors=True)
        os.sync()  # what the one leaves to be written is not at the other's cost
        runs["fastmerge"].append(run_process(fastmerge_command(job, base, models, mine)))
        if turn < job.mergekit_rounds:
            shutil.rmtree(theirs, ignore_errors=True)
            os.sync()
            runs["mergekit"].append(run_process(command, by_mergekit.environment()))
        if turn == 0:
            check(mine, theirs, job.alike)
    row = {name: summary(processes) for name, processes in runs.items()}
    faster = row["mergekit"]["seconds"] / row["fastmerge"]["seconds"]
    return {"job": str(job), "k": len(models), **row, "times_faster": faster}


def summary(processes: list[Process]) -> dict[str, float]:
    return {
        "rounds": len(processes),
        "seconds": statistics.median(p.seconds for p in processes),
        "cpu_seconds": statistics.median(p.cpu_seconds for p in processes),
        "memory_mib": max(p.memory_mib for p in processes),
    }


def run(layers: int = 22, folder: Path | None = None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for every job whose method fastmerge has, and what the run was of."""
    about = {
        "mergekit": by_mergekit.install(),
        "mergekit_flags": list(by_mergekit.FLAGS),
        "mergekit_environment": by_mergekit.ALLOCATOR,
        "threads": len(os.sched_getaffinity(0)),
        "parameters": sum(math.prod(shape) for _, shape in tensors(layers)),
    }
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        root = Path(scratch)
        base, *models = write(root / "family", max(job.models for job in JOBS), layers)
        rows = []
        for job in JOBS:
            if job.method in methods.names():
                rows.append(measure(job, base, models[: job.models], root))
                print(f"{job}: {rows[-1]['times_faster']:.1f} times faster", flush=True)
        return rows, about


def markdown(result: Mapping[str, Any]) -> str:
    """A kept result as a table for the README."""
    lines = [
        f"| job | mergekit {result['mergekit']} | fastmerge | times faster | CPU seconds | MiB beyond files |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        mine, theirs = row["fastmerge"], row["mergekit"]
        cells = (
            row["job"],
            f"{theirs['seconds']:.1f} s",
            f"{mine['seconds']:.1f} s",
            f"{row['times_faster']:.1f}",
            f"{theirs['cpu_seconds']:.1f} : {mine['cpu_seconds']:.1f}",
            f"{theirs['memory_mib']:,.0f} : {mine['memory_mib']:,.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
