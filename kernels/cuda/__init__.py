"""The GPU backend: Triton kernels. Importing it needs no GPU; calling it does, unless Triton interprets
(TRITON_INTERPRET=1).

`<op>_many` takes a list of an op's arguments and does those of equal dtypes and K in one launch.
"""

from __future__ import annotations

try:
    import triton as _triton  # noqa: F401 - only whether it is there
except ImportError as error:
    raise ImportError("Triton is not installed: pip install 'fastmerge[cuda]' on Linux") from error

from .combine import combine, combine_many
from .delta_sum import delta_sum, delta_sum_many
from .elect import elect, elect_many
from .gather import gather
from .inner_products import inner_products
from .kept_sums import kept_sums
from .mask_against import mask_against
from .modulate import modulate, modulate_many
from .moments import moments, moments_many
from .pack_bits import pack_bits
from .scatter import scatter
from .scatter_add import scatter_add
from .unpack_bits import unpack_bits

__all__ = [
    "combine",
    "combine_many",
    "delta_sum",
    "delta_sum_many",
    "elect",
    "elect_many",
    "gather",
    "inner_products",
    "kept_sums",
    "mask_against",
    "modulate",
    "modulate_many",
    "moments",
    "moments_many",
    "pack_bits",
    "scatter",
    "scatter_add",
    "unpack_bits",
]
