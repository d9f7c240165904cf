"""Run benchmarks, print their tables, keep the run in bench/results/.

    python bench/run.py [ops] [merges] [scoring] [switching] [peers] [--layers N]
    python bench/run.py quality [--quick] [--fresh] [--domain NAME]… [--seed N]…
    python bench/run.py pool [--quick] [--fresh] [--seed N]…
    python bench/run.py --markdown bench/results/….json

Without a name ops, merges, scoring and switching run. peers merges by mergekit too, which it installs in
bench/peers/.venv; that takes half an hour. --layers tries switching and peers on models with fewer than the 22 layers
of 1.1 B parameters.

quality trains small models in four domains (images, text, adapters, two_stream), merges them by every method and tests
the results; that takes less than thirty minutes on two cores, --quick less than five. What is done is kept in .quality/
and not done again but with --fresh; --domain and --seed do a part, and the report is written once all is there.

pool merges four to twenty small models, trained likewise, as irrelevant and relevant ones join; it takes twenty minutes
on two cores.

--markdown prints a kept result of peers or quality as the README's table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "merges"), str(HERE / "peers"), str(HERE / "runtime")]
console = Console(width=140)


def ops() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "benchmark.json"
        program = [str(Path(sys.executable).with_name("pytest")), str(HERE / "ops"), "-q", "-p", "no:cacheprovider"]
        subprocess.run([*program, f"--benchmark-json={file}", "--benchmark-disable-gc"], check=True)
        return [entry["extra_info"] for entry in json.loads(file.read_text())["benchmarks"]]


def show_ops(rows: list[dict[str, Any]]) -> None:
    table = Table(
        title="ops: minimum traffic over time, against a copy of the same bytes and against PyTorch", box=None
    )
    for heading in ("op", "dtype", "K", "threads", "ns/element", "GB/s", "copy GB/s", "of copy", "times faster than"):
        table.add_column(heading, justify="left" if heading in ("op", "dtype", "times faster than") else "right")
    for row in rows:
        faster = ", ".join(f"{name} {value:.1f}" for name, value in row["times_faster"].items())
        numbers = (f"{row[key]:.2f}" for key in ("nanoseconds_per_element", "gigabytes_per_second"))
        rest = (f"{row['copy_gigabytes_per_second']:.1f}", f"{row['of_copy']:.2f}", faster)
        table.add_row(row["op"], row["dtype"], str(row["k"]), str(row["threads"]), *numbers, *rest)
    console.print(table)


def show_merges(rows: list[dict[str, Any]]) -> None:
    table = Table(title="merges: wall time less start-up, against reading and writing the bytes once", box=None)
    for heading in ("method", "K", "GB moved", "floor s", "merge s", "start-up s", "of floor", "MiB beyond files"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in rows:
        if "sweep" in row:
            continue
        keys = ("gigabytes", "floor_seconds", "seconds", "startup_seconds", "of_floor")
        numbers = (f"{row[key]:.2f}" for key in keys)
        table.add_row(row["method"], str(row["k"]), *numbers, f"{row['memory_mib']:.0f}")
    console.print(table)
    for row in rows:
        if "sweep" in row:
            times = f"{row['seconds']:.2f} s, {row['of_single']:.2f} of one density ({row['single_seconds']:.2f} s)"
            console.print(f"{row['sweep']} in one run: {times}")


def show_scoring(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        console.print(
            f"scoring a pool of {row['pool']}, {row['gigabytes']:.1f} GB: {row['seconds']:.2f} s, {row['of_read']:.2f} "
            f"of reading it ({row['read_seconds']:.2f} s), {row['memory_mib']:.0f} MiB beyond gradient and files"
        )


def show_switching(rows: list[dict[str, Any]]) -> None:
    table = Table(title="switching a live model's task, against a copy of its bytes", box=None)
    for heading in ("kind", "from", "to", "10⁶ parameters", "threads", "copy ms", "switch ms", "of copy"):
        table.add_column(heading, justify="left" if heading in ("kind", "from", "to") else "right")
    for row in rows:
        times = (f"{1000 * row[key]:.1f}" for key in ("copy_seconds", "seconds"))
        size = f"{row['parameters'] / 1e6:.0f}"
        table.add_row(row["kind"], row["from"], row["to"], size, str(row["threads"]), *times, f"{row['of_copy']:.2f}")
    console.print(table)


def main() -> None:
    import merges
    import peers
    import scoring
    import switching
    from harness import save
    from quality import report
    from quality import run as quality
    from quality.pool import run as pool

    kinds = {
        "ops": (ops, show_ops),
        "merges": (merges.run, show_merges),
        "scoring": (scoring.run, show_scoring),
        "switching": (lambda: switching.run(layers=wanted.layers), show_switching),
    }

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "kinds", nargs="*", default=list(kinds), metavar="ops|merges|scoring|switching|peers|quality|pool"
    )
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--domain", action="append", choices=quality.DOMAINS)
    parser.add_argument("--seed", action="append", type=int)
    wanted = parser.parse_args()
    if wanted.markdown:
        content = json.loads(wanted.markdown.read_text())
        print({"peers": peers.markdown, "quality": report.summary}[content["kind"]](content))
        return
    if unknown := set(wanted.kinds) - {*kinds, "peers", "quality", "pool"}:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    for kind, (measure, show) in kinds.items():
        if kind in wanted.kinds:
            rows = measure()
            show(rows)
            console.print(f"kept in {save(kind, rows).relative_to(Path.cwd())}")
    if "peers" in wanted.kinds:
        rows, about = peers.run(wanted.layers)
        file = save("peers", rows, **about)
        print(peers.markdown(json.loads(file.read_text())))
        console.print(f"kept in {file.relative_to(Path.cwd())}")
    if "pool" in wanted.kinds:
        kept = pool.run(quick=wanted.quick, fresh=wanted.fresh, seeds=wanted.seed)
        if kept:
            console.print(f"kept in {kept.relative_to(Path.cwd())}, .md, .csv and .png")
    if "quality" in wanted.kinds:
        kept = quality.run(quick=wanted.quick, fresh=wanted.fresh, seeds=wanted.seed, domains=wanted.domain)
        if kept:
            print(report.summary(json.loads(kept.read_text())))
            console.print(f"kept in {kept.relative_to(Path.cwd())}, .md, .csv and .png")


if __name__ == "__main__":
    main()
