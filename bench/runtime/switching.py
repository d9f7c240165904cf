"""Switching a live model's task, against a copy of the model's bytes: base and two fine-tunes in bfloat16.

The copy moves every parameter by the C library's memcpy, on as many threads as switching has. Copies and switches
alternate; medians of the rounds' ratios are reported.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from family import tensors, write
from harness import memcpy, seconds
from torch import nn

import fastmerge as fm
from fastmerge import dispatch
from fastmerge.formats.checkpoint import open_checkpoint
from fastmerge.formats.experts import BLOCK, expert_layout

DENSITY = 0.01
TASKS = ("model0", "model1")


def empty_model(layers: int) -> nn.Module:
    """A module of the family's parameters, which computes nothing."""
    model = nn.Module()
    for name, shape in tensors(layers):
        module = model
        *path, last = name.split(".")
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16)))
    return model


def write_expert(folder: Path, task: str, layers: int, seed: int) -> None:
    """A random expert of the density, laid out as a merge lays them out."""
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, torch.Tensor] = {}
    sizes = []
    for name, shape in tensors(layers):
        n = torch.Size(shape).numel()
        at = (torch.rand(n, generator=generator) < DENSITY).nonzero().flatten()
        parts[f"{name}/counts"] = torch.bincount(at // BLOCK, minlength=-(-n // BLOCK)).to(torch.int32)
        parts[f"{name}/offsets"] = (at % BLOCK).to(torch.uint16)
        parts[f"{name}/values"] = 0.01 * torch.randn(len(at), generator=generator).bfloat16()
        sizes.append((name, n, len(at), "BF16"))
    layout = expert_layout(task, sizes)
    file = folder / layout.files[0].name
    file.parent.mkdir(exist_ok=True)
    with file.open("wb") as stream:
        stream.write(layout.files[0].header)
        for name in layout.places:
            stream.write(parts[name].view(torch.uint8).numpy().data)


def write_experts(folder: Path, base: Path, layers: int) -> None:
    """Make the model folder one of experts for both tasks."""
    for seed, task in enumerate(TASKS):
        write_expert(folder, task, layers, seed)
    record = {
        "format": "fastmerge.experts",
        "version": 1,
        "fastmerge": fm.__version__,
        "method": "random",
        "params": {},
        "tasks": TASKS,
        "base": {"source": str(base), "files": open_checkpoint(base, "base").identity()},
        "aliases": {},
        "copied": [],
        "replaced": [],
        "experts": {
            t: {"file": f"{t}.safetensors", "scale": 1.5, "density": DENSITY, "scope": "tensor"} for t in TASKS
        },
        "backbone": open_checkpoint(folder, "backbone").identity(),
    }
    (folder / "experts.json").write_text(json.dumps(record))


def copy_of(model: nn.Module, threads: int) -> Callable[[], None]:
    """A copy of the model's bytes into memory of its own, divided among threads."""
    sources = [p.detach() for p in model.parameters()]
    pairs = [(torch.zeros_like(source), source, source.numel() * source.element_size()) for source in sources]

    def part(number: int) -> None:
        for target, source, size in pairs:
            begin, end = size * number // threads, size * (number + 1) // threads
            memcpy(target.data_ptr() + begin, source.data_ptr() + begin, end - begin)

    def run() -> None:
        others = [threading.Thread(target=part, args=(number,)) for number in range(1, threads)]
        for thread in others:
            thread.start()
        part(0)
        for thread in others:
            thread.join()

    return run


def measure(live: Any, names: tuple[str | None, ...], copy: Callable[[], None], rounds: int) -> dict[str, Any]:
    """Switches from the first state to the second, and copies, in turn."""
    before, after = names
    for name in (*names, *names):
        live.set_task(name)
    ratios, switches, copies = [], [], []
    for _ in range(rounds):
        live.set_task(before)
        copies.append(seconds(copy))
        switches.append(seconds(lambda: live.set_task(after)))
        ratios.append(switches[-1] / copies[-1])
    return {
        "from": before or "none",
        "to": after or "none",
        "seconds": statistics.median(switches),
        "copy_seconds": statistics.median(copies),
        "of_copy": statistics.median(ratios),
    }


def run(folder: Path | None = None, layers: int = 22, rounds: int = 9) -> list[dict[str, Any]]:
    """All switches of both kinds; 22 layers are 1.1 B parameters."""
    native = dispatch.load("native")
    threads = 1 if isinstance(native, str) else native.threads()
    rows = []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        root = Path(scratch)
        base, *models = write(root, len(TASKS), layers)
        named = dict(zip(TASKS, models, strict=True))
        fm.merge("emr", base, named, root / "emr")
        fm.merge("linear", base, named, root / "experts")
        write_experts(root / "experts", base, layers)
        model = empty_model(layers)
        copy = copy_of(model, threads)
        size = sum(p.numel() for p in model.parameters())
        for kind in ("emr", "experts"):
            live = fm.runtime.load(root / kind, model)
            rows += [
                {"kind": kind, "parameters": size, "threads": threads, **measure(live, names, copy, rounds)}
                for names in ((TASKS[0], TASKS[1]), (None, TASKS[0]), (TASKS[0], None))
            ]
    return rows
