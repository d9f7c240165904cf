"""Which backend computes an op: by the device of its inputs, or the one asked for, which never falls back.

A backend is a subpackage of fastmerge.kernels that has a function with the op's name.
"""

from __future__ import annotations

import functools
import importlib
import logging
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import batching
from .errors import BackendError, nearest

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

PREFERENCE = {"cpu": ("native", "reference"), "cuda": ("cuda", "reference")}  # by device type, the fastest first
DEVICES = {"native": ("cpu",), "cuda": ("cuda",)}  # where a backend can compute; the others can anywhere
WITHOUT_CUDA = "this PyTorch is built without CUDA; install one with it (https://pytorch.org/get-started)"


def backends() -> list[str]:
    """Names of the backends that are part of this installation, usable here or not."""
    package = importlib.import_module("fastmerge.kernels")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.ispkg)


@functools.cache
def load(backend: str) -> ModuleType | str:
    """The backend's module, or the reason why it cannot be used here."""
    try:
        return importlib.import_module(f"fastmerge.kernels.{backend}")
    except ImportError as error:
        return str(error)


def why_not(op: str, backend: str, device: torch.device | str) -> str | None:
    """The reason why `backend` cannot compute `op` on this device; None if it can.

    device: a tensor's, or a type ("cpu", "cuda"), of which no GPU is asked anything.
    """
    module = load(backend)
    if isinstance(module, str):
        return module
    if not hasattr(module, op):
        return f"{op} is not implemented there"
    kind, index = (device, None) if isinstance(device, str) else (device.type, device.index)
    if kind not in DEVICES.get(backend, (kind,)):
        return f"it computes on {' and '.join(DEVICES[backend])}, the tensors are on {kind}"
    if backend == "cuda" == kind and index is not None:
        return lacking(op, index)
    return None


@functools.cache
def lacking(op: str, gpu: int) -> str | None:
    """Why the cuda backend, which there is, cannot compute an op on this GPU; it is looked at once."""
    import torch

    if torch.version.hip is not None:  # its GPUs are called "cuda" too
        return WITHOUT_CUDA
    try:
        load("cuda").check(torch.cuda.get_device_capability(gpu), op)  # type: ignore[union-attr]
    except RuntimeError as error:
        return str(error)
    return None


def choose(op: str, device: torch.device | str, backend: str | None = None) -> Callable[..., Any]:
    """The function that computes `op` on a tensor's device, or a type of them, from `backend` or the fastest that can.

    In a batch it may wait for other tensors' calls (fastmerge.batching), where the backend has `<op>_many`, which takes
    a list of the op's arguments. Raises BackendError where the requested backend, or every one, cannot; the message
    says why.
    """
    kernel, many = chosen(op, device, backend)
    line = batching.line.get()
    return kernel if line is None else line.kernel(kernel, many)


@functools.cache
def chosen(op: str, device: torch.device | str, backend: str | None) -> tuple[Callable[..., Any], batching.Many | None]:
    """What `choose` chooses, and the backend's `<op>_many`, if it has that."""
    if backend is not None and backend not in backends():
        known = ", ".join(backends())
        raise BackendError(f"unknown backend {backend!r}{nearest(backend, backends())}; there are {known}")
    rejected: list[str] = []
    kind = device if isinstance(device, str) else device.type
    for name in (backend,) if backend else PREFERENCE.get(kind, ("reference",)):
        reason = why_not(op, name, device)
        if reason is None:
            for line in rejected:
                log.info("%s on %s: %s, so %s computes it", op, device, line, name)
            return getattr(load(name), op), getattr(load(name), f"{op}_many", None)
        rejected.append(f"backend {name!r} cannot be used ({reason})")
    raise BackendError(f"{op} on {device}: {'; '.join(rejected)}")
