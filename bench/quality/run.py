"""Training and testing all domains with all seeds, two at a time; what is done is kept and not done again."""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from harness import save
from rich.console import Console

from . import report
from .domain import Domain, Size
from .evaluate import evaluate
from .methods import rows
from .training import train

DOMAINS = {"images": "Images", "text": "Text", "adapters": "Adapters", "two_stream": "TwoStreams"}
FULL, QUICK = Size(), Size(tasks=3, test=500)
FOLDER = Path(".quality")
WORKERS = 2  # small models gain nothing from a second thread, so each has a process
HERE = Path(__file__).parent
TELLS = ("run", "report", "claims")  # of results, and changes none
MADE_BY = [
    f for f in (*HERE.glob("*.py"), *HERE.with_name("demo").glob("*.py")) if f.parent != HERE or f.stem not in TELLS
]
console = Console()


def run(
    *,
    quick: bool = False,
    fresh: bool = False,
    seeds: Sequence[int] | None = None,
    domains: Sequence[str] | None = None,
    size: Size | None = None,
) -> Path | None:
    """Do what is not done yet, of the seeds and domains given or of all; write the report once all is there."""
    size = size or (QUICK if quick else FULL)
    every = [(domain, seed) for seed in (range(1) if quick else range(3)) for domain in DOMAINS]
    wanted = [
        (domain, seed)
        for domain, seed in every
        if (domains is None or domain in domains) and (seeds is None or seed in seeds)
    ]
    begin = time.perf_counter()
    todo = [one for one in wanted if fresh or not done(*one, size)]
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as pool:
        jobs = {pool.submit(job, domain, seed, size): (domain, seed) for domain, seed in todo}
        for finished in as_completed(jobs):
            domain, seed = jobs[finished]
            seconds = finished.result()
            console.print(f"{domain}, seed {seed}: " + ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items()))
    console.print(f"{len(todo)} of {len(wanted)} were to do: {time.perf_counter() - begin:.0f} s")
    found = [done(domain, seed, size) for domain, seed in every]
    if not all(found):
        return None
    return keep([json.loads(file.read_text()) for file in found if file], quick)


def done(domain: str, seed: int, size: Size) -> Path | None:
    """The file of a result by this very code, if there is one."""
    file = place(domain, seed, size)
    return file if file.is_file() and json.loads(file.read_text())["made_by"] == made_by() else None


def place(domain: str, seed: int, size: Size) -> Path:
    return FOLDER / f"{domain}-{seed}-{size.effort:g}-{size.tasks}-{size.test}.json"


def made_by() -> str:
    """What tells results of this code from those of another."""
    contents = [file.read_bytes() for file in sorted(MADE_BY)]
    return hashlib.sha256(b"".join(contents)).hexdigest()[:16]


def job(name: str, seed: int, size: Size) -> dict[str, float]:
    """Train and test one domain with one seed and write what was found; the seconds that it took."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    domain: Domain = getattr(importlib.import_module(f".{name}", __package__), DOMAINS[name])(size)
    family = train(domain, seed)
    trained = time.perf_counter()
    wanted = rows(domain)
    scores = evaluate(family, wanted, seed)
    seconds = {"training": trained - begin, "testing": time.perf_counter() - trained}
    content: dict[str, Any] = {
        "made_by": made_by(),
        "domain": domain.name,
        "metric": domain.metric,
        "more_is_better": domain.more_is_better,
        "parameters": sum(t.numel() for t in family.base.values()),
        "seed": seed,
        "seconds": seconds,
        "rows": [
            {"table": row.table, "label": row.label, "x": row.x, "scores": own}
            for row, own in zip(wanted, scores, strict=True)
        ],
    }
    file = place(name, seed, size)
    file.parent.mkdir(exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(content) + "\n")
    partial.rename(file)
    return seconds


def keep(results: list[dict[str, Any]], quick: bool) -> Path:
    """Write results of all domains and seeds, with tables and plots of them."""
    domains = {one["domain"]: {key: one[key] for key in ("metric", "more_is_better", "parameters")} for one in results}
    together: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for one in results:
        for row in one["rows"]:
            scores = together.setdefault((one["domain"], row["table"], row["label"], row["x"]), {})
            for task, score in row["scores"].items():
                scores.setdefault(task, []).append(round(score, 4))
    file = save(
        "quality",
        [dict(zip(("domain", "table", "label", "x"), key, strict=True)) | {"scores": s} for key, s in together.items()],
        quick=quick,
        seeds=sorted({one["seed"] for one in results}),
        seconds=round(sum(sum(one["seconds"].values()) for one in results)),
        workers=WORKERS,
        domains=domains,
    )
    content = json.loads(file.read_text())
    file.with_suffix(".md").write_text(report.markdown(content, file.with_suffix(".png").name))
    file.with_suffix(".csv").write_text(report.csv(content))
    report.plot(content, file.with_suffix(".png"))
    return file
