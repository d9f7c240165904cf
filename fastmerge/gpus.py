"""Which GPUs there are, and why one cannot be used. What `--device` says is settled here.

auto: the current GPU where it can be used, else the CPU. cuda: the current GPU. cuda:0,cuda:1: these.
"""

from __future__ import annotations

import re
from pathlib import Path

from . import dispatch
from .errors import InputError

NAME = re.compile(r"cuda(:\d+)?")
HARDWARE = Path("/proc/driver/nvidia"), Path("/dev/nvidia0"), Path("/dev/dxg")


def is_gpu(device: str) -> bool:
    return device.startswith("cuda")


def problems(device: str) -> list[str]:
    """What is wrong with a device that was asked for; looks at no GPU for auto and cpu."""
    if device in ("auto", "cpu"):
        return []
    names = device.split(",")
    if not all(NAME.fullmatch(name) for name in names):
        return [f"device {device!r}: expected auto, cpu, cuda, cuda:1, or several GPUs such as cuda:0,cuda:1"]
    if len(set(names)) < len(names) or ("cuda" in names and len(names) > 1):
        return [f"device {device!r}: name each GPU once, by its number"]
    reasons = {name: why_not(name) for name in names}
    return [f"device {name!r} cannot be used: {reason}; or use cpu" for name, reason in reasons.items() if reason]


def settle(device: str) -> tuple[str, list[str]]:
    """The devices by their numbers, or cpu, and notes for who asked. Raises InputError as `problems` says."""
    wrong = problems(device)
    if wrong:
        raise InputError(wrong)
    if device == "cpu":
        return device, []
    if device == "auto":
        reason = why_not("cuda")
        if reason is not None:
            return "cpu", [f"merged on the CPU, though there is a GPU: {reason}"] if there_is_one() else []
    import torch

    names = ["cuda" if device == "auto" else name for name in device.split(",")]
    return ",".join(f"cuda:{torch.cuda.current_device()}" if name == "cuda" else name for name in names), []


def there_is_one() -> bool:
    """Whether this machine has a GPU, whatever PyTorch makes of it."""
    return any(path.exists() for path in HARDWARE)


def why_not(name: str) -> str | None:
    """Why a GPU, "cuda" (the current one) or "cuda:1", cannot be used, and what to do; None where it can."""
    import torch

    if torch.version.cuda is None:
        return dispatch.WITHOUT_CUDA
    if not torch.cuda.is_available():
        return (
            f"PyTorch for CUDA {torch.version.cuda} finds no GPU: there is none, CUDA_VISIBLE_DEVICES hides it, or its "
            "driver is missing or too old (see nvidia-smi)"
        )
    count = torch.cuda.device_count()
    index = int(name.partition(":")[2] or torch.cuda.current_device())
    if index >= count:
        return f"there {'is one GPU' if count == 1 else f'are {count} GPUs'}, numbered from 0"
    backend = dispatch.load("cuda")
    if isinstance(backend, str):
        return backend
    try:
        backend.check(torch.cuda.get_device_capability(index))
    except RuntimeError as error:
        return str(error)
    return None
