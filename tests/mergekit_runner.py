"""mergekit itself, in the environment that FASTMERGE_MERGEKIT names the Python of, or in this one.

Run as a program there: python mergekit_runner.py JOBS.json, which holds {OUT: [CONFIGURATION, SEED]}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PYTHON = os.environ.get("FASTMERGE_MERGEKIT", sys.executable)


def available() -> bool:
    """Whether there is a mergekit to compare with."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('mergekit') is None)"
    return subprocess.run([PYTHON, "-c", code], check=False).returncode == 0


def run(jobs: Mapping[Path, Mapping[str, Any]], *, seeds: Mapping[Path, int] | None = None) -> None:
    """Merge every configuration into its folder."""
    listed = {str(out): [config, (seeds or {}).get(out)] for out, config in jobs.items()}
    file = next(iter(jobs)).parent / "jobs.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(listed))
    quiet = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([PYTHON, __file__, str(file)], check=True, env=quiet)


def _main(file: str) -> None:
    import logging

    from mergekit.config import MergeConfiguration  # type: ignore[import-not-found,unused-ignore]
    from mergekit.merge import run_merge  # type: ignore[import-not-found,unused-ignore]
    from mergekit.options import MergeOptions  # type: ignore[import-not-found,unused-ignore]

    logging.disable(logging.WARNING)
    for out, (config, seed) in json.loads(Path(file).read_text()).items():
        # Of frankenmerges, mergekit writes tensors that share memory, unless they are cloned.
        options = MergeOptions(quiet=True, random_seed=seed, clone_tensors=True)
        run_merge(MergeConfiguration.model_validate(config), out, options)


if __name__ == "__main__":
    _main(sys.argv[1])
