"""Train seven models, merge them by the command line, and see what each merged model still can do.

    python bench/demo/run.py [--fresh]

Trained models are kept in .demo/ and used again; --fresh trains anew. The exit code is 1 where EMR's mean accuracy is
more than two points below the individual models', or not above every single merged model's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from data import Task, pretraining, tasks
from rich.console import Console
from rich.table import Table
from train import accuracy, finetune, pretrain

import fastmerge as fm

FOLDER = Path(".demo")
MERGES = {"average": ["linear"], "task arithmetic": ["task_arithmetic", "-p", "scale=0.3"], "EMR": ["emr"]}
console = Console()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="train anew")
    if parser.parse_args().fresh:
        shutil.rmtree(FOLDER, ignore_errors=True)
    torch.set_num_threads(2)
    begin = time.perf_counter()
    all_tasks = tasks()
    train(all_tasks)
    rows = {"individual": {t.name: accuracy(models(t), models(t), t.test) for t in all_tasks}}
    sizes = {"individual": sum(disk_bytes(models(t)) for t in all_tasks)}
    times: dict[str, float] = {}
    for title, arguments in MERGES.items():
        out = FOLDER / arguments[0]
        times[title] = merge(arguments, all_tasks, out)
        sizes[title] = disk_bytes(out)
        rows[title] = {t.name: evaluate(title, t, out) for t in all_tasks}
    show(all_tasks, rows, sizes, times)
    results = {"accuracy": rows, "bytes": sizes, "seconds": times, "total_seconds": time.perf_counter() - begin}
    (FOLDER / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    console.print(f"{time.perf_counter() - begin:.0f} s in all; folders and results.json are in {FOLDER}/")
    return judge(rows)


def models(task: Task) -> Path:
    return FOLDER / "models" / task.name


def train(all_tasks: list[Task]) -> None:
    """Train whatever is not there yet."""
    base = FOLDER / "base"
    if not base.is_dir():
        console.print("base model:", pretrain(pretraining(), base))
    missing = [task for task in all_tasks if not models(task).is_dir()]
    # Two trainings with a thread each: models this small leave a second thread half idle.
    with ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        lines: Iterable[str] = pool.map(finetune, [base] * len(missing), missing, map(models, missing))
        for task, line in zip(missing, lines, strict=True):
            console.print(f"{task.name} ({task.classes} classes):", line)


def command(*arguments: str) -> float:
    """Run the command line; its wall time in seconds."""
    line = [str(Path(sys.executable).with_name("fastmerge")), *arguments]
    console.print("$ fastmerge " + " ".join(arguments), style="dim", soft_wrap=True)
    begin = time.perf_counter()
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def merge(arguments: list[str], all_tasks: list[Task], out: Path) -> float:
    named = [part for task in all_tasks for part in ("--model", f"{task.name}={models(task)}")]
    heads = ["--task-specific", "classifier.*"]
    return command(
        "merge", *arguments, "--base", str(FOLDER / "base"), *named, *heads, "--out", str(out), "--overwrite"
    )


def evaluate(title: str, task: Task, merged: Path) -> float:
    """A merged trunk is tested with the task's own head; EMR gives a whole model per task."""
    if title != "EMR":
        return accuracy(merged, models(task), task.test)
    own = FOLDER / "emr-tasks" / task.name
    fm.task(merged, task.name, own, overwrite=True)
    return accuracy(own, own, task.test)


def disk_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def mean(row: dict[str, float]) -> float:
    return sum(row.values()) / len(row)


def show(
    all_tasks: list[Task], rows: dict[str, dict[str, float]], sizes: dict[str, int], times: dict[str, float]
) -> None:
    table = Table(title="test accuracy in %", box=None)
    for heading in ("", *rows):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for task in all_tasks:
        table.add_row(
            f"{task.name} ({task.classes} classes)", *(f"{100 * row[task.name]:.1f}" for row in rows.values())
        )
    table.add_row("mean", *(f"{100 * mean(row):.1f}" for row in rows.values()), style="bold")
    table.add_row("MB on disk", *(f"{sizes[title] / 1e6:.2f}" for title in rows))
    table.add_row("seconds to merge", *(f"{times[title]:.1f}" if title in times else "" for title in rows))
    console.print(table)


def judge(rows: dict[str, dict[str, float]]) -> int:
    emr, individual = mean(rows["EMR"]), mean(rows["individual"])
    if emr < individual - 0.02:
        console.print(f"EMR is more than two points below the individual models: {emr:.3f}, {individual:.3f}")
        return 1
    for title in ("average", "task arithmetic"):
        if emr <= mean(rows[title]):
            console.print(f"EMR is not above {title}: {emr:.3f}, {mean(rows[title]):.3f}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
