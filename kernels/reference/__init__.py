"""Plain PyTorch: the definition of every op, and the oracle of every test. Not written for speed."""

from .balance import balance
from .blend import blend
from .combine import combine
from .compete import compete
from .delta_sum import delta_sum
from .elect import elect
from .extract_topk import extract_topk
from .gather import gather
from .gram import gram
from .highpass import highpass
from .highpass_merge import Filtered, highpass_merge
from .inner_products import inner_products
from .kept_sums import kept_sums
from .kth_magnitude import kth_magnitude
from .low_rank import low_rank
from .magnitude_histogram import magnitude_histogram
from .mask_against import mask_against
from .modulate import modulate
from .moments import moments
from .pack_bits import pack_bits
from .rank_drop import rank_drop
from .row_divergence import row_divergence
from .row_gram import row_gram
from .scatter import scatter
from .scatter_add import scatter_add
from .unpack_bits import unpack_bits
from .variance import variance

__all__ = [
    "Filtered",
    "balance",
    "blend",
    "combine",
    "compete",
    "delta_sum",
    "elect",
    "extract_topk",
    "gather",
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
    "moments",
    "pack_bits",
    "rank_drop",
    "row_divergence",
    "row_gram",
    "scatter",
    "scatter_add",
    "unpack_bits",
    "variance",
]
