"""The vocabulary: one record and one public function an op.

Every function takes tensors of any shape and any mixture of bfloat16, float16, float32 and float64 on one device
(memory-mapped ones too, without copying them; or arrays, see fastmerge.arrays), K = 1…64 models, writes into `out=`
where given, which may be an input of that dtype but shares no memory with one otherwise, and computes on the fastest
backend of that device or on `backend=`. The arithmetic that all backends share is stated in kernels/README.md.
Functions that return sums add to `sums=` where given, so that a tensor may be worked on in chunks; cut at multiples of
`BLOCK` elements, the sums are those of the whole tensor to the bit. Argument errors are InputError, an unusable backend
BackendError.

torch is imported by the first call, so that planning and the command line start without it.
"""

from __future__ import annotations

from ._arguments import working_dtype
from .competition import balance, compete
from .experts import extract_largest, extract_topk, extraction_room, gather, scatter, scatter_add, scattering
from .fourier import Filtered, highpass, highpass_merge
from .masks import elect, mask_against, modulate, modulation, pack_bits, unpack_bits
from .merging import Consensus, arc, blend, combine, delta_sum, geodesic, kept_sums, low_rank
from .records import BLOCK, MAX_MODELS, OPS, Op, Reach, packed_bytes
from .results import (
    Bounds,
    Combined,
    Cut,
    Drop,
    Elected,
    Expert,
    InnerProducts,
    Kept,
    KeptSums,
    LowRank,
    Masked,
    Moments,
    Varied,
    Window,
    expert_of,
)
from .selection import TOP_BITS, kth_magnitude, magnitude_histogram, rank_drop
from .statistics import gram, inner_products, moments, row_divergence, row_gram, variance

__all__ = [
    "BLOCK",
    "MAX_MODELS",
    "OPS",
    "TOP_BITS",
    "Bounds",
    "Combined",
    "Consensus",
    "Cut",
    "Drop",
    "Elected",
    "Expert",
    "Filtered",
    "InnerProducts",
    "Kept",
    "KeptSums",
    "LowRank",
    "Masked",
    "Moments",
    "Op",
    "Reach",
    "Varied",
    "Window",
    "arc",
    "balance",
    "blend",
    "combine",
    "compete",
    "delta_sum",
    "elect",
    "expert_of",
    "extract_largest",
    "extract_topk",
    "extraction_room",
    "gather",
    "geodesic",
    "gram",
    "highpass",
    "highpass_merge",
    "inner_products",
    "kept_sums",
    "kth_magnitude",
    "low_rank",
    "magnitude_histogram",
    "mask_against",
    "modulate",
    "modulation",
    "moments",
    "pack_bits",
    "packed_bytes",
    "rank_drop",
    "row_divergence",
    "row_gram",
    "scatter",
    "scatter_add",
    "scattering",
    "unpack_bits",
    "variance",
    "working_dtype",
]
