"""All pools with all seeds, two at a time; what is done is kept and not done again."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from harness import save
from rich.console import Console

from ..domain import Size
from . import report
from .costs import costs
from .methods import METHODS, Case
from .paper import IRRELEVANT, NOISY, RELEVANT
from .tasks import EVALUATED, family, trunk

FOLDER, WORKERS = Path(".quality"), 2
FULL, QUICK = Size(tasks=20, test=500), Size(effort=0.3, tasks=8, test=200)
SEEDS = range(3)
GRADIENTS = {IRRELEVANT: 300, RELEVANT: 200, NOISY: 300}
SAMPLES = {IRRELEVANT: 32, RELEVANT: 16, NOISY: 32}
COUNTS = {IRRELEVANT: (4, 8, 12, 20), RELEVANT: (4, 12, 20), NOISY: (5,)}
HERE = Path(__file__).parent
TRAINED_BY = [
    HERE / "tasks.py",
    *(HERE.parent / f"{name}.py" for name in ("domain", "images", "training")),
    *(HERE.parents[1] / "demo" / f"{name}.py" for name in ("data", "model")),
]
MADE_BY = [*TRAINED_BY, HERE / "methods.py"]
console = Console()


def run(
    *, quick: bool = False, fresh: bool = False, seeds: Sequence[int] | None = None, size: Size | None = None
) -> Path | None:
    """Do what is not done yet, of the seeds given or of all; write the report once all is there."""
    size = size or (QUICK if quick else FULL)
    every = [(part, seed) for seed in (SEEDS[:1] if quick else SEEDS) for part in GRADIENTS]
    todo = [one for one in every if (seeds is None or one[1] in seeds) and (fresh or done(place(*one, size)) is None)]
    begin = time.perf_counter()
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as pool:
        needed = {seed for _, seed in todo} | {other(seed, quick) for part, seed in todo if part == NOISY}
        for seconds in pool.map(train, *zip(*((seed, size) for seed in sorted(needed)), strict=True)) if todo else ():
            console.print(f"training: {seconds:.0f} s")
        jobs = {pool.submit(job, part, seed, size, other(seed, quick)): (part, seed) for part, seed in todo}
        for finished in as_completed(jobs):
            part, seed = jobs[finished]
            console.print(f"{part}, seed {seed}: {finished.result():.0f} s")
    console.print(f"{len(todo)} of {len(every)} were to do: {time.perf_counter() - begin:.0f} s")
    found = [done(place(part, seed, size)) for part, seed in every]
    return keep([one for one in found if one], quick) if all(found) else None


def other(seed: int, quick: bool) -> int:
    """The seed whose base the noisy model is of."""
    return seed + 1 if quick else (seed + 1) % len(SEEDS)


def place(part: str, seed: int, size: Size) -> Path:
    return FOLDER / f"pool-{part}-{seed}-{size.effort:g}-{size.tasks}-{size.test}.json"


def weights(seed: int, size: Size) -> Path:
    """The file of a seed's trained models."""
    return FOLDER / f"pool-{seed}-{size.effort:g}-{size.tasks}-{made_by(TRAINED_BY)}.pt"


def done(file: Path) -> dict[str, Any] | None:
    """A result by this very code, if there is one."""
    content = json.loads(file.read_text()) if file.is_file() else {}
    return content if content.get("made_by") == made_by() else None


def made_by(files: Sequence[Path] = MADE_BY) -> str:
    """What tells results of this code from those of another."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()[:16]


def train(seed: int, size: Size) -> float:
    """Train a seed's models where they are not there; the seconds that it took."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    family(size, seed, weights(seed, size))
    return time.perf_counter() - begin


def cases(part: str, seed: int, size: Size, noisy: int) -> Iterator[tuple[int, Case]]:
    """The pools of a part, by their sizes."""
    own = family(size, seed, weights(seed, size))
    tasks = list(own.domain.tasks)
    evaluated = tasks if part == RELEVANT else tasks[:EVALUATED]
    gradients = max(1, round(size.effort * GRADIENTS[part]))
    for count in sorted({min(count, len(tasks)) for count in COUNTS[part]}):
        members = {task: trunk(own, task) for task in tasks[: EVALUATED if part == NOISY else count]}
        if part == NOISY:
            strange = family(size, noisy, weights(noisy, size))
            members["noisy"] = trunk(strange, tasks[0])
        yield len(members), Case(own, members, evaluated, seed, gradients, SAMPLES[part])


def job(part: str, seed: int, size: Size, noisy: int) -> float:
    """Merge and test a part's pools, and write what was found; the seconds that it took."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    rows = []
    for count, case in cases(part, seed, size, noisy):
        if count == min(COUNTS[part]):
            rows.append({"method": "base", "x": count, "scores": case.scores(case.family.base)})
            alone = {task: case.scores(trunk(case.family, task))[task] for task in case.evaluated}
            rows.append({"method": "individual", "x": count, "scores": alone})
        for method in METHODS:
            start = time.perf_counter()
            merged = case.merged(method)
            took = time.perf_counter() - start
            rows.append({"method": method, "x": count, "scores": case.scores(merged), "seconds": took})
    content = {"made_by": made_by(), "part": part, "seed": seed, "rows": rows}
    content["seconds"] = time.perf_counter() - begin
    file = place(part, seed, size)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(content) + "\n")
    partial.rename(file)
    return time.perf_counter() - begin


def keep(results: list[dict[str, Any]], quick: bool) -> Path:
    """Write results of all parts and seeds, with tables and plots of them."""
    together: dict[tuple[str, str, int], dict[str, list[float]]] = {}
    for one in results:
        for row in one["rows"]:
            scores = together.setdefault((one["part"], row["method"], row["x"]), {})
            for task, score in row["scores"].items():
                scores.setdefault(task, []).append(round(score, 4))
    rows = [dict(zip(("part", "method", "x"), key, strict=True)) | {"scores": own} for key, own in together.items()]
    file = save(
        "pool",
        rows,
        quick=quick,
        seeds=sorted({one["seed"] for one in results}),
        seconds=round(sum(one["seconds"] for one in results)),
        workers=WORKERS,
        costs=costs(quick=quick),
    )
    content = json.loads(file.read_text())
    file.with_suffix(".md").write_text(report.markdown(content, file.with_suffix(".png").name))
    file.with_suffix(".csv").write_text(report.csv(content))
    report.plot(content, file.with_suffix(".png"))
    return file
