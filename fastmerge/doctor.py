"""Looking at things: an installation, a checkpoint, an artefact."""

from __future__ import annotations

import os
import platform
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import Any

from . import gpus
from .errors import attempt
from .formats import emr, experts
from .formats.checkpoint import Checkpoint
from .formats.folder import holds
from .formats.models import open_model
from .formats.record import RECORD, MergeRecord, read_record
from .formats.spec import local_path


def examine() -> dict[str, Any]:
    """The machine, and which backends can be used on it, or the reason why not."""
    import torch

    from . import __version__, dispatch, ops

    backends = {}
    for name in dispatch.backends():
        module = dispatch.load(name)
        if isinstance(module, str):
            backends[name] = f"cannot be used: {module}"
            continue
        covered = [op for op in ops.OPS if hasattr(module, op)]
        detail = f"; {module.isa()}, {module.threads()} threads" if hasattr(module, "isa") else ""
        reason = gpus.why_not("cuda") if name == "cuda" else None
        state = "ready" if reason is None else "installed"
        blocked = "" if reason is None else f"; cannot be used here: {reason}"
        backends[name] = f"{state}: {len(covered)} of {len(ops.OPS)} ops{detail}{blocked}"
    machine = {
        "fastmerge": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
        if hasattr(os, "sched_getaffinity")
        else platform.machine(),
        **_gpus(),
    }
    return {"machine": machine, "backends": backends}


def _gpus() -> dict[str, str]:
    """Every GPU with what it has, and why it cannot be used where it cannot; the versions of what computes on it."""
    import torch

    found = {}
    for i in range(torch.cuda.device_count() if torch.version.cuda and torch.cuda.is_available() else 0):
        own = torch.cuda.get_device_properties(i)
        reason = gpus.why_not(f"cuda:{i}")
        text = f"{own.name}, sm_{own.major}{own.minor}, {own.total_memory / 2**30:.0f} GiB"
        found[f"gpu {i}"] = text if reason is None else f"{text}; cannot be used: {reason}"
    return (found or {"gpu": "none"}) | {"cuda": ", ".join(f"{name} {own}" for name, own in _versions().items())}


def _versions() -> dict[str, str]:
    """Of CUDA in torch, Triton and NVRTC."""
    import torch

    from . import dispatch

    versions = {"torch for CUDA": torch.version.cuda or "none", "Triton": "none", "NVRTC": "none"}
    if not isinstance(dispatch.load("cuda"), str):
        import triton

        from .kernels.cuda import nvrtc

        versions["Triton"] = triton.__version__
        with suppress(RuntimeError):
            versions["NVRTC"] = ".".join(map(str, nvrtc.version()))
    return versions


def describe(path: str) -> dict[str, Any]:
    """What a checkpoint, an EMR artefact or a folder of experts holds, from headers only."""
    place = local_path(path)
    if holds(place, emr.RECORD):
        return _artefact(emr.EmrArtefact(place))
    if holds(place, experts.RECORD):
        return _experts(experts.ExpertsFolder(place))
    opened = open_model(path, "checkpoint", fetch=False)
    unread: list[str] = []  # a record that is damaged, or of a later version, beside a model that is whole
    record = attempt(unread, lambda: read_record(place)) if holds(place, RECORD) else None
    return _checkpoint(replace(opened, notes=(*opened.notes, *unread))) | ({} if record is None else _made(record))


def _made(record: MergeRecord) -> dict[str, Any]:
    """How a folder was made, and of what."""
    task = {"task": record.params["task"]} if "task" in record.params else {}
    return {"method": record.method, **task, "made_of": {name: own.source for name, own in record.inputs.items()}}


def _artefact(artefact: emr.EmrArtefact) -> dict[str, Any]:
    return {
        "kind": "EMR artefact",
        "method": artefact.record.method,
        "base": artefact.record.base.source,
        "rescalers": dict(zip(artefact.record.tasks, artefact.record.rescalers, strict=True)),
        "tensors": len(artefact.unified),
        "parameters": sum(info.numel for info in artefact.unified.values()),
        "bytes": sum(info.nbytes for part in (artefact.unified, artefact.masks) for info in part.values()),
    }


def _experts(folder: experts.ExpertsFolder) -> dict[str, Any]:
    backbone, own = folder.backbone.tensors.values(), folder.record.experts
    sizes = {t: sum(info.nbytes for parts in folder.experts[t].values() for info in parts) for t in folder.tasks}
    return {
        "kind": "experts",
        "method": folder.record.method,
        "base": folder.record.base.source,
        "scales": {task: own[task].scale for task in folder.tasks},
        "densities": {task: expert.density for task, expert in own.items() if expert.density is not None},
        "ranks": {task: expert.rank for task, expert in own.items() if expert.rank is not None},
        "parameters": sum(info.numel for info in backbone),
        "bytes": {"backbone": sum(info.nbytes for info in backbone), **sizes},
    }


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    tensors = checkpoint.tensors.values()
    named = checkpoint.config.get("architectures")
    architectures = named if isinstance(named, list) and named else ["unknown"]
    return {
        "kind": "checkpoint" if checkpoint.adapter is None else f"{checkpoint.adapter.get('peft_type')} adapter",
        "architecture": ", ".join(map(str, architectures)),
        "files": len(checkpoint.headers),
        "tensors": len(tensors),
        "parameters": sum(info.numel for info in tensors),
        "dtypes": dict(Counter(info.dtype for info in tensors)),
        "bytes": sum(info.nbytes for info in tensors),
        "notes": "; ".join(checkpoint.notes) or "none",
    }
