"""Time and memory of a step against the size of the pool, of models in bfloat16 on disk, each in a process of its own.

AdaMerging as its released code has it, autograd through a sum of all task vectors held in memory, is measured beside.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from harness import run_process
from safetensors.torch import save_file

COUNTS, SIDE, LAYERS, STEPS = (4, 8, 12, 16, 20), 1024, 8, 3
METHODS = ("FW hard", "FW soft", "AdaMerging", "AdaMerging, autograd")

PROGRAM = """
import json, sys, time
import torch
import fastmerge as fm

method, count, side, layers, steps = sys.argv[1], *map(int, sys.argv[2:])

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        shape = side, side
        self.layers = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(shape).bfloat16()) for _ in range(layers)])

def loss(model, target):
    return torch.stack([(p.view(-1)[::64].float() - target).square().mean() for p in model.layers]).sum()

def autograd(model, pool):
    from safetensors.torch import load_file
    base = [p.detach().float() for p in model.layers]
    vectors = [[t.float() - b for t, b in zip(load_file(f"{m}.safetensors").values(), base)] for m in pool]
    lam = torch.full((layers, len(pool)), 0.3, requires_grad=True)
    optimizer = torch.optim.Adam([lam], lr=1e-3)
    for _ in range(steps + 1):
        merged = [b + sum(lam[i, k] * v[i] for k, v in enumerate(vectors)) for i, b in enumerate(base)]
        value = torch.stack([(p.view(-1)[::64] - 0.3).square().mean() for p in merged]).sum()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        yield time.perf_counter()

def run(model, pool, times):
    def told(_):
        times.append(time.perf_counter())
    options = dict(steps=steps + 1, callback=told)
    files = [f"{m}.safetensors" for m in pool]
    if method == "AdaMerging":
        fm.ada_merging(model, files, [0.3], loss, **options)
    elif method == "FW soft":
        options |= dict(variant="soft", coefficients="layer", inner_steps=5, tolerance=-torch.inf)
        fm.frank_wolfe(model, files, loss, [0.3], **options)
    elif method == "FW hard":
        fm.frank_wolfe(model, files, loss, [0.3], lmo="layer", step="2/(t+2)", tolerance=-torch.inf, **options)
    else:
        times += autograd(model, pool)

times = []
run(Net(), [f"m{k}" for k in range(count)], times)
print(json.dumps({"seconds": sorted(b - a for a, b in zip(times, times[1:]))[len(times) // 2 - 1]}))
"""
EMPTY = "import torch, fastmerge as fm; fm.frank_wolfe; fm.ada_merging; fm.ops.combine(None, [torch.ones(1)])"


def costs(*, quick: bool = False) -> list[dict[str, Any]]:
    """By method and pool: the median seconds of a step, and MiB beyond the process itself and mapped files."""
    side, counts = (128, COUNTS[:2]) if quick else (SIDE, COUNTS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        for k in range(max(counts)):
            state = {f"layers.{n}": torch.randn(side, side).bfloat16() for n in range(LAYERS)}
            save_file(state, Path(folder) / f"m{k}.safetensors")
        empty = run_process([sys.executable, "-c", EMPTY], cwd=folder).memory_mib
        for method in METHODS:
            for count in counts:
                command = [sys.executable, "-c", PROGRAM, method, *map(str, (count, side, LAYERS, STEPS))]
                done = run_process(command, cwd=folder)
                rows.append(
                    {
                        "method": method,
                        "x": count,
                        "seconds": json.loads(done.output)["seconds"],
                        "memory_mib": done.memory_mib - empty,
                        "model_mib": LAYERS * side * side * 2 / 2**20,
                    }
                )
    return rows
