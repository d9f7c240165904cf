"""The GPU backend: Triton kernels. Importing it needs no GPU; calling it does, unless Triton interprets
(TRITON_INTERPRET=1)."""

from __future__ import annotations

try:
    import triton as _triton  # noqa: F401 - only whether it is there
except ImportError as error:
    raise ImportError("Triton is not installed: pip install 'fastmerge[cuda]' on Linux") from error

from .elect import elect
from .modulate import modulate

__all__ = ["elect", "modulate"]
