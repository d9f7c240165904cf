"""Everything that needs a GPU, in one command.

    python bench/gpu/run.py [--limit SECONDS] [conformance] [roofline] [filter] [sanitize] [merging] [pipeline] [tune]

Conformance to the reference, the roofline table, FR's filter, compute-sanitizer's memory and race checks where it is
installed, and whole merges from files in memory, of which those are left out, and named, that would begin after the
limit. Tables go to bench/results/, and say whether conformance had passed; what each part of a whole run took is kept
there too. Only where asked for, a merge's stages are timed and the pipeline's settings compared (pipeline), and launch
settings tuned. Where fastmerge is not installed, a copy without the native backend is put together in build/gpu.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KINDS = ("conformance", "roofline", "filter", "sanitize", "merging", "pipeline", "tune")  # in this order
LIMIT = 480.0  # seconds
RACES = 6  # processes, of which each looks for races in a part of what is watched
ABREAST = {"sanitize"}  # whose commands run side by side: they are not timed
OWN = {
    "conformance": {"OMP_NUM_THREADS": "1"},  # of each of the processes that test side by side
    # For the sanitizer each tensor is an allocation of its own, whose ends are known.
    "sanitize": {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
}


def assembled() -> Path:
    """The package as it is installed, without what must be compiled."""
    target = ROOT / "build" / "gpu"
    shutil.rmtree(target, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.cpp", "*.hpp")
    for folder, place in (("fastmerge", ""), ("kernels", "fastmerge"), ("bindings", "fastmerge")):
        shutil.copytree(ROOT / folder, target / place / folder, ignore=ignored)
    return target


def commands() -> dict[str, list[list[str]]]:
    """What is run of each kind."""
    many = ["-n", "12", "--dist", "worksteal"] if importlib.util.find_spec("xdist") else []
    # Without conftest.py, whose needs a machine with a GPU may lack, and which leaves out what is slow.
    options = ["--noconftest", "-q", "-p", "no:cacheprovider", *many]
    names = (
        "cuda/test_device.py",
        "cuda/test_merging.py",
        "cuda/test_modulation.py",
        "runtime/test_switching.py::test_on_a_gpu",
        "runtime/test_switching.py::test_on_a_gpu_by_a_graph",
        "bindings/test_torch_ops.py::test_gives_what_the_op_gives",
        "bindings/test_torch_ops.py::test_is_torchs_kind_of_operator",
    )
    tests = [sys.executable, "-m", "pytest", *options, *(str(ROOT / "tests" / name) for name in names)]
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    small = [sys.executable, str(HERE / "small.py")]
    watched = [("memcheck", [])] + [("racecheck", [str(part), str(RACES)]) for part in range(RACES)]
    return {
        "conformance": [tests],
        "sanitize": [
            [sanitizer, "--tool", tool, "--error-exitcode", "1", "--launch-timeout", "0", *small, *part]
            for tool, part in watched
        ]
        if sanitizer
        else [],
        **{kind: [[sys.executable, str(HERE / f"{kind}.py")]] for kind in KINDS if kind not in OWN},
    }


def run(kind: str, more: list[str]) -> list[int]:
    """The exit codes of a kind's commands, each given `more`."""
    env, own = os.environ | OWN.get(kind, {}), [[*command, *more] for command in commands()[kind]]
    if kind not in ABREAST:
        return [subprocess.run(command, cwd=HERE, env=env).returncode for command in own]
    with ThreadPoolExecutor(len(own) or 1) as pool:
        ended = pool.map(
            lambda command: subprocess.run(
                command, cwd=HERE, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ),
            own,
        )
        codes = []
        for process in ended:
            print(process.stdout, end="", flush=True)
            codes.append(process.returncode)
        return codes


def main() -> int:
    if not torch.cuda.is_available():
        print("torch sees no GPU here")
        return 2
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", help=f"{', '.join(KINDS)}; all but the last two where none is named")
    parser.add_argument(
        "--limit", type=float, default=LIMIT, help=f"{LIMIT:.0f}; after so many seconds no merge begins"
    )
    given = parser.parse_args()
    wanted = given.kinds or KINDS[:-2]
    if unknown := set(wanted) - set(KINDS):
        print(f"{', '.join(unknown)}: what there is is {', '.join(KINDS)}")
        return 2
    paths = [*(ROOT / "bench" / part for part in ("", "ops", "merges", "peers")), ROOT / "tests", HERE]
    if importlib.util.find_spec("fastmerge") is None:
        paths.insert(0, assembled())
    os.environ["PYTHONPATH"] = os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")])
    rows: list[dict[str, Any]] = []
    start = time.perf_counter()
    for kind in KINDS:
        if kind not in wanted:
            continue
        begin = time.perf_counter()
        if not commands()[kind]:
            print("sanitize: compute-sanitizer is not installed", flush=True)
        left = ["--limit", f"{max(0.0, given.limit - (begin - start)):.1f}"] if kind == "merging" else []
        codes = run(kind, left)
        outcome = "failed" if any(codes) else "done" if codes else "left out"
        if kind == "conformance":
            os.environ["CONFORMANCE"] = "failed" if any(codes) else "passed"
        rows.append({"part": kind, "outcome": outcome, "seconds": time.perf_counter() - begin})
        print(f"{kind}: {outcome} in {rows[-1]['seconds']:.0f} s", flush=True)
    total = time.perf_counter() - start
    print(f"all in {total:.0f} s", flush=True)
    if not given.kinds:
        sys.path[:0] = map(str, paths)
        from harness import save
        from timing import machine

        print(f"kept in {save('gpu-run', rows, total_seconds=total, limit_seconds=given.limit, **machine())}")
    return sum(row["outcome"] == "failed" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
