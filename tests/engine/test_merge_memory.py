"""The memory that a merge takes beside its files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from folders import near, write

import fastmerge as fm
from fastmerge.errors import InputError

MEASURED = """
import json, sys, threading, time
import torch
import fastmerge as fm

def held():  # KiB that are no file's
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["RssAnon"].split()[0]) + int(lines["RssShmem"].split()[0])

def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, held())

method, base, models, out, outputs = json.loads(sys.argv[1])
fm.ops.elect(torch.zeros(1), [torch.zeros(1)])
done, peak = threading.Event(), 0
start = held()
thread = threading.Thread(target=watch, daemon=True)
thread.start()
fm.merge(method, base, models, out, outputs=outputs, memory="16MiB")
done.set()
thread.join()
print(max(peak, held()) - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("method", ["task_arithmetic", "emr", "fr"])
def test_memory_does_not_grow_with_models_or_size(method: str, tmp_path: Path) -> None:
    """Beyond the mapped files a merge holds its budget: of 3 or 12 models, of a model three times as large, and of six
    outputs."""

    def peak(k: int, layers: int, outputs: int = 0) -> int:
        folder = tmp_path / f"{k}-{layers}"
        base = {f"layers.{i}.weight": torch.zeros(2048, 1024, dtype=torch.bfloat16) for i in range(layers)}
        models = {f"m{i}": str(write(folder / f"m{i}", base)) for i in range(k)}
        several = {f"o{i}": {} for i in range(outputs)}
        job = json.dumps([method, str(write(folder / "base", base)), models, str(folder / "out"), several])
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, job], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        shutil.rmtree(folder)
        return int(done.stdout) >> 10

    measured = {"K = 3": peak(3, 8), "K = 12": peak(12, 8), "three times as large": peak(3, 24)}
    if method != "fr":  # each of whose outputs holds transforms of its own
        measured["six outputs"] = peak(3, 8, 6)
    assert all(mib < 64 for mib in measured.values()), f"MiB beyond the files: {measured}"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("rescale", ["density", "l1"])
def test_memory_of_long_rows(rescale: str, tmp_path: Path) -> None:
    """DELLA ranks a row as a whole, as of a stack of experts: what that takes is asked for before, and held."""
    base = {"experts": torch.zeros(3, 4_000_008, dtype=torch.bfloat16)}
    models = {f"m{i}": str(write(tmp_path / f"m{i}", near(base, i))) for i in range(3)}
    given = "della", str(write(tmp_path / "base", base)), models, str(tmp_path / "out")
    params = {"density": [0.5, 0.4, 0.3], "rescale": rescale}
    with pytest.raises(InputError, match=r"for the whole of 'experts'; pass --memory") as caught:
        fm.plan(*given, params, memory="128MiB")
    least = int(re.search(r"at least ([\d,]+)", str(caught.value))[1].replace(",", ""))
    assert least < 600 << 20
    job = json.dumps([*given, {}])
    code = MEASURED.replace('memory="16MiB"', f"params={params!r}, memory={least}")
    done = subprocess.run([sys.executable, "-c", code, job], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(done.stdout) << 10 < least + (16 << 20)
