"""A little of what mergekit 0.1.5 makes of the configurations, kept for where there is no mergekit to compare with.

Made anew by `FASTMERGE_MERGEKIT=PYTHON python tests/mergekit_golden.py`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import llama
import mergekit_runner
from folders import read
from mergekit_configs import ALIKE, located
from torch import Tensor

FILE = Path(__file__).with_name("mergekit_golden.json")
FAMILY = {"a": 1, "b": 2, "c": 3}
SHOWN = ("embed_tokens", "layers.0.self_attn.o_proj", "layers.1.input_layernorm", "layers.2.mlp.down_proj", "lm_head")


def models(root: Path) -> dict[str, Path]:
    """The models that the configurations are of."""
    tied = llama.family(root / "tied", {"d": 4}, tied=True)
    return llama.family(root, FAMILY) | {"tied": tied["base"], "d": tied["d"]}


def digest(merged: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Of some tensors the number of elements, their sum, and three of them."""
    shown = {name: own.float().reshape(-1) for name, own in merged.items() if any(part in name for part in SHOWN)}
    return {
        name: [own.numel(), float(own.double().sum()), *own[:: own.numel() // 3][:3].tolist()]
        for name, own in sorted(shown.items())
    }


def _main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folders = models(Path(scratch) / "models")
        jobs = {Path(scratch) / "merged" / name: located(config, folders) for name, config in ALIKE.items()}
        mergekit_runner.run(jobs)
        found = {out.name: digest(read(out)) for out in jobs}
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    _main()
