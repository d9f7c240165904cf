"""The GPU backend: Triton kernels, and CUDA C++ through NVRTC. Importing it needs no GPU; calling it does.

Where Triton interprets (TRITON_INTERPRET=1), its kernels need none either.
"""

from __future__ import annotations

try:
    import triton
except ImportError as error:
    raise ImportError("Triton is not installed: pip install 'fastmerge[cuda]' on Linux") from error

from . import nvrtc
from .elect import elect
from .extract_topk import extract_topk
from .highpass import highpass
from .highpass_merge import Filtered, highpass_merge
from .kth_magnitude import kth_magnitude
from .launch import rejection
from .magnitude_histogram import magnitude_histogram
from .modulate import modulate

__all__ = [
    "Filtered",
    "elect",
    "extract_topk",
    "highpass",
    "highpass_merge",
    "kth_magnitude",
    "magnitude_histogram",
    "modulate",
]


def check(capability: tuple[int, int]) -> None:
    """Raise RuntimeError, saying what to install, where a GPU of this capability cannot be computed on."""
    reason = rejection(capability, triton.__version__)
    if reason:
        raise RuntimeError(reason)
    nvrtc.library()
