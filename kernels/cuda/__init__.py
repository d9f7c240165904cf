"""The GPU backend: Triton kernels, and CUDA C++ through NVRTC. Importing it needs no GPU; calling it does.

Where Triton interprets (TRITON_INTERPRET=1), its kernels need none either. `<op>_many` takes a list of an op's
arguments and does those of equal dtypes and K in one launch.
"""

from __future__ import annotations

try:
    import triton
except ImportError as error:
    raise ImportError("Triton is not installed: pip install 'fastmerge[cuda]' on Linux") from error

from . import cufft, nvrtc
from .balance import balance
from .blend import blend
from .combine import combine, combine_many
from .compete import compete
from .delta_sum import delta_sum, delta_sum_many
from .elect import elect, elect_many
from .enqueue import check_target, make_ready
from .extract_topk import extract_topk
from .gather import gather
from .gram import gram
from .highpass import highpass
from .highpass_merge import Filtered, highpass_merge, highpass_merge_many
from .inner_products import inner_products
from .kept_sums import kept_sums
from .kth_magnitude import kth_magnitude
from .launch import rejection
from .low_rank import low_rank
from .magnitude_histogram import magnitude_histogram
from .mask_against import mask_against
from .modulate import modulate, modulate_many, modulation
from .moments import moments, moments_many
from .pack_bits import pack_bits
from .rank_drop import rank_drop
from .row_divergence import row_divergence
from .row_gram import row_gram
from .scatter import scatter, scattering
from .scatter_add import scatter_add
from .unpack_bits import unpack_bits
from .variance import variance

__all__ = [
    "Filtered",
    "balance",
    "blend",
    "combine",
    "combine_many",
    "compete",
    "delta_sum",
    "delta_sum_many",
    "elect",
    "elect_many",
    "extract_topk",
    "gather",
    "gram",
    "highpass",
    "highpass_merge",
    "highpass_merge_many",
    "inner_products",
    "kept_sums",
    "kth_magnitude",
    "low_rank",
    "magnitude_histogram",
    "mask_against",
    "modulate",
    "modulate_many",
    "modulation",
    "moments",
    "moments_many",
    "pack_bits",
    "rank_drop",
    "row_divergence",
    "row_gram",
    "scatter",
    "scatter_add",
    "scattering",
    "unpack_bits",
    "variance",
]


COMPILED = "magnitude_histogram", "kth_magnitude", "extract_topk", "rank_drop"  # by NVRTC
TRANSFORMED = "highpass", "highpass_merge", "Filtered"  # by cuFFT


def check(capability: tuple[int, int], op: str | None = None) -> None:
    """Raise RuntimeError, saying what to install, where a GPU of this capability cannot compute an op, or not all."""
    reason = rejection(capability, triton.__version__)
    if reason:
        raise RuntimeError(reason)
    check_target(capability)
    make_ready()
    if op is None or op in COMPILED:
        nvrtc.check(capability)
    if op is None or op in TRANSFORMED:
        cufft.library()
