"""What may be said of any merge, whatever is merged: names, dtype, memory, device, and where the result goes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .. import gpus
from ..errors import InputError, attempt, nearest
from .destination import output_folder, output_problems
from .preflight import Rename

if TYPE_CHECKING:
    import torch

DTYPE_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_MODELS = 64


def name_problems(names: Sequence[str], rename: Mapping[str, Rename]) -> list[str]:
    """What is wrong with the names of models, and with those in --rename."""
    problems = []
    if not 1 <= len(names) <= MAX_MODELS:
        problems.append(f"1 to {MAX_MODELS} models can be merged, these are {len(names)}; pass --model NAME=FOLDER")
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            problems.append(f"{names.count(name)} models are called {name!r}; give each a name of its own")
        if not MODEL_NAME.fullmatch(name) or name == "base":
            problems.append(f"model name {name!r}: expected letters, digits, '.', '_' and '-', and not 'base'")
    problems += [f"--rename {n}: there is no model {n!r}{nearest(n, names)}" for n in rename if n not in names]
    return problems


def output_name_problems(outputs: Iterable[str]) -> list[str]:
    """What is wrong with the names of outputs."""
    wrong = [name for name in outputs if not MODEL_NAME.fullmatch(name)]
    return [f"output name {name!r}: expected letters, digits, '.', '_' and '-'" for name in wrong]


def spelled(dtype: str | torch.dtype | None, device: str | torch.device) -> tuple[str | None, str]:
    """A dtype and a device as the command line spells them; torch's own are taken too."""
    return None if dtype is None else str(dtype).removeprefix("torch."), str(device)


def dtype_name(code: str) -> str:
    """What a dtype of files is called: bfloat16, of BF16."""
    return next(name for name, own in DTYPE_NAMES.items() if own == code)


def dtype_problems(dtype: str) -> list[str]:
    """What is wrong with the dtype that a result is to have."""
    if dtype in DTYPE_NAMES:
        return []
    return [f"unknown dtype {dtype!r}{nearest(dtype, DTYPE_NAMES)}; there are {', '.join(DTYPE_NAMES)}"]


def option_problems(dtype: str | torch.dtype | None, memory: str | int, device: str | torch.device) -> list[str]:
    """What is wrong with options, whatever is merged."""
    dtype, device = spelled(dtype, device)
    problems = gpus.problems(device)
    problems += dtype_problems(dtype) if dtype else []
    attempt(problems, lambda: parse_bytes(memory))
    return problems


def place_problems(
    out: str | Path | None,
    inputs: Sequence[Path] = (),
    total: int = 0,
    *,
    overwrite: bool = False,
    resume: bool = False,
    outputs: Collection[str] | None = (),
) -> list[str]:
    """What keeps `total` bytes from being written to `out`, or to `outputs` in it (None: these are not known)."""
    problems: list[str] = []
    destination = None if out is None else attempt(problems, partial(output_folder, out))
    if destination is not None:
        problems += output_problems(destination, total, inputs, overwrite=overwrite, resume=resume, outputs=outputs)
    return problems


def parse_bytes(text: str | int) -> int:
    """ "8GiB", "500MB" or a number as bytes."""
    match = re.fullmatch(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([A-Za-z]*)\s*", str(text))
    if not match or match[2].upper() not in UNITS:
        raise InputError(f"memory {text!r}: expected a size such as 8GiB or 500MB")
    return int(float(match[1]) * UNITS[match[2].upper()])
