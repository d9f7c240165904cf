"""mergekit itself, in the environment that FASTMERGE_MERGEKIT names the Python of, or in this one.

Run as a program there: python mergekit_runner.py JOBS.json MODE, where the file holds {OUT: [CONFIGURATION, SEED]}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fastmerge

PYTHON = os.environ.get("FASTMERGE_MERGEKIT", sys.executable)


def available() -> bool:
    """Whether there is a mergekit to compare with."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('mergekit') is None)"
    return subprocess.run([PYTHON, "-c", code], check=False).returncode == 0


def run(jobs: Mapping[Path, Mapping[str, Any]], mode: str = "", *, seeds: Mapping[Path, int] | None = None) -> None:
    """Merge every configuration into its folder. mode: "register" or "take over", for fastmerge's binding to do it."""
    listed = {str(out): [config, (seeds or {}).get(out)] for out, config in jobs.items()}
    file = next(iter(jobs)).parent / "jobs.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(listed))
    subprocess.run([PYTHON, __file__, str(file), mode], check=True, env=environment(file.parent))


def environment(scratch: Path) -> dict[str, str]:
    """In which mergekit's Python finds this fastmerge, and nothing else of this environment."""
    link = scratch / "beside" / "fastmerge"
    link.parent.mkdir(exist_ok=True)
    if not link.exists():
        link.symlink_to(Path(fastmerge.__file__).parent)
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | quiet | {"PYTHONPATH": str(link.parent)}


def _main(file: str, mode: str) -> None:
    import logging

    from mergekit.scripts.run_yaml import main

    logging.disable(logging.ERROR)  # of tokenizers that are not there
    if mode:
        from fastmerge.bindings import mergekit as binding

        binding.register(take_over=mode == "take over")
    for out, (config, seed) in json.loads(Path(file).read_text()).items():
        recipe = Path(f"{out}.yml")
        recipe.write_text(json.dumps(config))
        # Of frankenmerges, mergekit writes tensors that share memory, unless they are cloned.
        seeded = [] if seed is None else ["--random-seed", str(seed)]
        main([str(recipe), out, "--quiet", "--clone-tensors", *seeded], standalone_mode=False)


if __name__ == "__main__":
    _main(*sys.argv[1:])
