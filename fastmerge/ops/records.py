"""The vocabulary's records: what tests, benchmarks and `fastmerge doctor` know of every op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Reach = Literal["element", "row", "tensor"]  # how a tensor may be cut: anywhere, between rows, not at all

BLOCK = 65_536  # elements summed in float64 on their own
MAX_MODELS = 64


@dataclass(frozen=True, slots=True)
class Op:
    """An op of the vocabulary.

    `traffic(n, k, itemsize)` is the least number of bytes that must move for n elements, k models and inputs and
    outputs of `itemsize` bytes. Elementwise results equal the reference's bit for bit, or where an op has a `tolerance`
    to that fraction of the largest magnitude that is transformed (in float32).
    """

    name: str
    traffic: Callable[[int, int, int], int]
    reach: Reach = "element"
    tolerance: float = 0.0


def packed_bytes(n: int) -> int:
    """Bytes that n mask bits take."""
    return -(-n // 8)


OPS: dict[str, Op] = {
    op.name: op
    for op in (
        Op("elect", lambda n, k, size: n * size * (k + 2) + k * packed_bytes(n)),
        Op("modulate", lambda n, _, size: n * size * 3 + packed_bytes(n)),
        Op("low_rank", lambda n, _, size: n * size * 2),
        Op("mask_against", lambda n, k, size: n * size * (k + 2) + k * packed_bytes(n)),
        Op("combine", lambda n, k, size: n * size * (k + 2)),
        Op("blend", lambda n, k, size: n * size * (k + 2)),
        Op("kept_sums", lambda n, k, size: n * size * (k + 1)),
        Op("delta_sum", lambda n, k, size: n * size * (k + 1) + n * max(4, size)),
        Op(
            "highpass",
            lambda n, _, size: n * (2 * size + max(4, size)),  # twice: the spectrum needs all before there is a result
            reach="tensor",
            tolerance=1e-6,
        ),
        Op("highpass_merge", lambda n, k, size: n * size * (2 * (k + 1) + 1), reach="tensor", tolerance=1e-6),
        Op("moments", lambda n, k, size: n * size * (k + 1)),
        Op("inner_products", lambda n, k, size: n * size * (k + 1)),
        Op("gram", lambda n, k, size: n * size * (k + 1)),
        Op("row_gram", lambda n, k, size: n * size * (k + 1), reach="row"),
        Op("row_divergence", lambda n, _, size: n * size * 2, reach="row"),
        Op("variance", lambda n, k, size: n * size * (k + 1) + n * max(4, size)),
        Op("compete", lambda n, k, size: n * size * (k + 1) + n * max(4, size)),
        Op("balance", lambda n, k, size: n * size * (k + 2)),
        Op("magnitude_histogram", lambda n, k, size: n * size * (k + 1)),
        Op("kth_magnitude", lambda n, k, size: n * size * (k + 1), reach="tensor"),
        Op("rank_drop", lambda n, k, size: n * size * (k + 1) + k * packed_bytes(n), reach="row"),
        Op("extract_topk", lambda n, _, size: 2 * n * size, reach="tensor"),
        Op("scatter_add", lambda n, _, size: n * (3 * size + 2)),
        Op("gather", lambda n, _, size: n * (2 * size + 2)),
        Op("scatter", lambda n, k, size: k * n * (2 * size + 2)),
        Op("pack_bits", lambda n, *_: n + packed_bytes(n)),
        Op("unpack_bits", lambda n, *_: n + packed_bytes(n)),
    )
}
