"""mergekit as a peer: how it is installed, the flags it is fastest with, and its words for each of our jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

VENV = Path(__file__).parent / ".venv"
FLAGS = ("--async-write", "--write-threads", "2", "--out-shard-size", "500M")
# It allocates every tensor anew: the allocator is told to keep what is freed, in place of returning it to the system.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(256 << 20)}
OF_MODEL = ("density", "epsilon", "gamma")  # said for each model, not for the merge


def install() -> str:
    """Make sure of mergekit in an environment of its own; its version."""
    python = str(VENV / "bin/python")
    if not (VENV / "bin/mergekit-yaml").exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        # torch first and pinned, so that nothing else chooses it.
        for package in ("torch==2.13.0", "mergekit"):
            subprocess.run([python, "-m", "pip", "install", "-q", package], check=True)
    ask = [python, "-c", "from importlib.metadata import version; print(version('mergekit'))"]
    return subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()


def recipe(method: str, params: Mapping[str, Any], base: Path, models: Sequence[Path]) -> dict[str, Any]:
    """mergekit's configuration of a job in fastmerge's terms."""
    content: dict[str, Any] = {"merge_method": method, "dtype": "bfloat16"}
    if method == "slerp":
        named = [{"model": str(folder)} for folder in (base, *models)]
        return content | {"base_model": str(base), "models": named, "parameters": {"t": params["t"]}}
    own = {"weight": 1.0} | {name: params[name] for name in OF_MODEL if name in params}
    content["models"] = [{"model": str(model), "parameters": own} for model in models]
    if method == "linear":
        return content
    # In fastmerge only TIES divides by what agrees.
    whole = {"normalize": method == "ties", "lambda": params.get("scale", 1.0)}
    return content | {"base_model": str(base), "parameters": whole}


def command(file: Path, content: Mapping[str, Any], out: Path) -> list[str]:
    """The command that merges by that configuration, which is written to `file`: JSON is YAML."""
    file.write_text(json.dumps(content))
    return [str(VENV / "bin/mergekit-yaml"), str(file), str(out), *FLAGS]


def environment() -> dict[str, str]:
    return os.environ | ALLOCATOR | {"HF_HUB_OFFLINE": "1"}
