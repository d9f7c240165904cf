"""The vocabulary as torch operators: importing this registers `torch.ops.fastmerge.*`.

They take and give plain tensors, compute by fastmerge.dispatch on CPU and GPU, are traced without a graph break by
torch.compile(fullgraph=True) and torch.export, with dynamic shapes, and change no argument but the theta of scatter_add
and scatter. Arguments are those of `fastmerge.ops` without `out=`, `sums=` and `backend=`, except that weights are a
tensor [K], what takes part is told by plain arguments (`merging.selection`), experts are three tensors, and ranks one
list; bounds are a tensor [K, 4]. combine (a plain sum), delta_sum, highpass_merge and highpass have gradients.
"""

from . import gradients  # noqa: F401  registers them
from .competing import balance, compete
from .filtering import highpass, highpass_merge
from .merging import (
    blend,
    combine,
    delta_sum,
    elect,
    geodesic,
    low_rank,
    mask_against,
    modulate,
    pack_bits,
    unpack_bits,
)
from .selecting import (
    extract_topk,
    gather,
    kept_sums,
    kth_magnitude,
    magnitude_histogram,
    rank_drop,
    scatter,
    scatter_add,
)
from .summing import gram, inner_products, moments, row_divergence, row_gram, variance

__all__ = [
    "balance",
    "blend",
    "combine",
    "compete",
    "delta_sum",
    "elect",
    "extract_topk",
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
