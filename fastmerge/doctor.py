"""Looking at things: an installation, a checkpoint, an artefact."""

from __future__ import annotations

import os
import platform
from collections import Counter
from pathlib import Path
from typing import Any

from .formats import emr, experts
from .formats.models import open_model


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
        device = "" if name != "cuda" or torch.cuda.is_available() else "; but torch sees no GPU"
        backends[name] = f"ready: {len(covered)} of {len(ops.OPS)} ops{detail}{device}"
    machine = {
        "fastmerge": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
        if hasattr(os, "sched_getaffinity")
        else platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
    return {"machine": machine, "backends": backends}


def describe(path: str) -> dict[str, Any]:
    """What a checkpoint, an EMR artefact or a folder of experts holds, from headers only."""
    if (Path(path) / emr.RECORD).is_file():
        artefact = emr.EmrArtefact(Path(path))
        return {
            "kind": "EMR artefact",
            "method": artefact.record.method,
            "base": artefact.record.base.source,
            "rescalers": dict(zip(artefact.record.tasks, artefact.record.rescalers, strict=True)),
            "tensors": len(artefact.unified),
            "parameters": sum(info.numel for info in artefact.unified.values()),
            "bytes": sum(info.nbytes for part in (artefact.unified, artefact.masks) for info in part.values()),
        }
    if (Path(path) / experts.RECORD).is_file():
        folder = experts.ExpertsFolder(Path(path))
        return {
            "kind": "experts",
            "method": folder.record.method,
            "base": folder.record.base.source,
            "scales": {task: folder.record.experts[task].scale for task in folder.tasks},
            "densities": {task: own.density for task, own in folder.record.experts.items() if own.density is not None},
            "ranks": {task: own.rank for task, own in folder.record.experts.items() if own.rank is not None},
            "parameters": sum(info.numel for info in folder.backbone.tensors.values()),
            "bytes": {
                "backbone": sum(info.nbytes for info in folder.backbone.tensors.values()),
                **{
                    task: sum(info.nbytes for parts in folder.experts[task].values() for info in parts)
                    for task in folder.tasks
                },
            },
        }
    checkpoint = open_model(path, "checkpoint")
    tensors = checkpoint.tensors.values()
    return {
        "kind": "checkpoint",
        "architecture": ", ".join(checkpoint.config.get("architectures") or ["unknown"]),
        "files": len(checkpoint.headers),
        "tensors": len(tensors),
        "parameters": sum(info.numel for info in tensors),
        "dtypes": dict(Counter(info.dtype for info in tensors)),
        "bytes": sum(info.nbytes for info in tensors),
        "notes": "; ".join(checkpoint.notes) or "none",
    }
