"""Run benchmarks, print their tables, keep the run in bench/results/.

    python bench/run.py [ops] [merges] [peers] [--layers N]
    python bench/run.py --markdown bench/results/peers-….json

Without a name ops and merges run. peers merges by mergekit too, which it installs in bench/peers/.venv; that takes
twenty minutes. --layers tries it on models with fewer than the 22 layers of 1.1 B parameters; --markdown prints a kept
result of it as the README's table.
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
sys.path[:0] = [str(HERE), str(HERE / "merges"), str(HERE / "peers")]
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
        keys = ("gigabytes", "floor_seconds", "seconds", "startup_seconds", "of_floor")
        numbers = (f"{row[key]:.2f}" for key in keys)
        table.add_row(row["method"], str(row["k"]), *numbers, f"{row['memory_mib']:.0f}")
    console.print(table)


def main() -> None:
    import merges
    import peers
    from harness import save

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=["ops", "merges"], metavar="ops|merges|peers")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    wanted = parser.parse_args()
    if wanted.markdown:
        print(peers.markdown(json.loads(wanted.markdown.read_text())))
        return
    if unknown := set(wanted.kinds) - {"ops", "merges", "peers"}:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    for kind, measure, show in (("ops", ops, show_ops), ("merges", merges.run, show_merges)):
        if kind in wanted.kinds:
            rows = measure()
            show(rows)
            console.print(f"kept in {save(kind, rows).relative_to(Path.cwd())}")
    if "peers" in wanted.kinds:
        rows, about = peers.run(wanted.layers)
        file = save("peers", rows, **about)
        print(peers.markdown(json.loads(file.read_text())))
        console.print(f"kept in {file.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
