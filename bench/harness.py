"""What all benchmarks share: the ceiling, measured in the same run, and results that say where they come from."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import fastmerge
from fastmerge import dispatch

RESULTS = Path(__file__).parent / "results"
BUFFER = 4 << 20
memcpy = ctypes.CDLL(None).memcpy
memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


class Copy:
    """The ceiling of any kernel: the C library's copy, half of the bytes read and half written.

    Its buffers are large, since the library writes past the cache, which is faster, only from a certain size on.
    """

    moved = 1 << 30

    def __init__(self) -> None:
        self.source = torch.ones(self.moved // 2, dtype=torch.uint8)
        self.target = torch.zeros(self.moved // 2, dtype=torch.uint8)

    def seconds(self, moved: int) -> float:
        """What moving that many bytes takes, by a copy timed now."""
        taken = seconds(lambda: memcpy(self.target.data_ptr(), self.source.data_ptr(), self.source.numel()))
        return taken * moved / self.moved


@dataclass(frozen=True)
class Process:
    """What a command took from its start to its end, and what it printed."""

    seconds: float
    cpu_seconds: float  # user and system, of all its threads
    memory_mib: float  # the peak of what is no file's
    output: str


def run_process(command: list[str], env: Mapping[str, str] | None = None, cwd: str | Path | None = None) -> Process:
    """Run a command to its end, watching its memory; SystemExit with what it printed where it fails."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=env, cwd=cwd)
        peak, pid = 0.0, 0
        while not pid:
            peak = max(peak, anonymous_mib(process.pid))
            time.sleep(0.02)
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        took = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0), errors.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{errors.read()}")
        return Process(took, usage.ru_utime + usage.ru_stime, peak, output.read())


def anonymous_mib(pid: int) -> float:
    """What a process holds that is no file's; 0 where it has ended."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return (int(lines["RssAnon"].split()[0]) + int(lines["RssShmem"].split()[0])) / 1024
    except (OSError, KeyError, ValueError):
        return 0.0


def read_all(files: list[Path], readers: int = 2) -> None:
    """Read every byte, on that many threads, into one buffer each."""
    jobs = [(file, start) for file in files for start in range(0, file.stat().st_size, 64 * BUFFER)]
    lock = threading.Lock()

    def work() -> None:
        buffer = bytearray(BUFFER)
        while True:
            with lock:
                if not jobs:
                    return
                file, start = jobs.pop()
            fd = os.open(file, os.O_RDONLY)
            for offset in range(start, start + 64 * BUFFER, BUFFER):
                if not os.preadv(fd, [buffer], offset):
                    break
            os.close(fd)

    threads = [threading.Thread(target=work) for _ in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=RESULTS.parent)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def save(kind: str, rows: list[dict[str, Any]], **more: object) -> Path:
    """Write a run's rows to a file of its own in results/, with what `more` says of the run."""
    native = dispatch.load("native")
    now = datetime.now(timezone.utc)
    content = {
        "kind": kind,
        "date": now.isoformat(timespec="seconds"),
        "fastmerge": fastmerge.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": processor(),
        "isa": "no native backend" if isinstance(native, str) else native.isa(),
        **more,
        "rows": rows,
    }
    file = RESULTS / f"{kind}-{now:%Y%m%d-%H%M%S}.json"
    file.write_text(json.dumps(content, indent=1) + "\n")
    return file
