"""What the engine and the benchmarks know of every op."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Domain = Literal["weight", "delta", "mask", "gradient"]


Reach = Literal["element", "row", "tensor"]  # how a tensor may be cut: anywhere, between rows, not at all


BLOCK = 65_536  # elements summed in float64 on their own


MAX_MODELS = 64


@dataclass(frozen=True, slots=True)
class Op:
    """What the engine and the benchmarks know of an op.

    `traffic(n, k, itemsize)` is the least number of bytes that must move for n elements, k models and inputs and
    outputs of `itemsize` bytes. Elementwise results equal the reference's bit for bit, or where an op has a `tolerance`
    to that fraction of the largest magnitude that is transformed (in float32); sums agree to `sums_rtol`.
    """

    name: str
    domains: Mapping[str, Domain]
    traffic: Callable[[int, int, int], int]
    reach: Reach = "element"
    sums_rtol: float = 1e-12
    tolerance: float = 0.0


def packed_bytes(n: int) -> int:
    """Bytes that n mask bits take."""
    return -(-n // 8)


OPS: dict[str, Op] = {
    op.name: op
    for op in (
        Op(
            "elect",
            {"base": "weight", "models": "weight", "unified": "delta", "masks": "mask"},
            lambda n, k, size: n * size * (k + 2) + k * packed_bytes(n),
        ),
        Op(
            "modulate",
            {"base": "weight", "unified": "delta", "mask": "mask", "out": "weight"},
            lambda n, _, size: n * size * 3 + packed_bytes(n),
        ),
        Op("low_rank", {"base": "weight", "out": "weight"}, lambda n, _, size: n * size * 2),
        Op(
            "mask_against",
            {"base": "weight", "models": "weight", "merged": "delta", "masks": "mask"},
            lambda n, k, size: n * size * (k + 2) + k * packed_bytes(n),
        ),
        Op(
            "combine",
            {"base": "weight", "models": "weight", "out": "weight"},
            lambda n, k, size: n * size * (k + 2),
        ),
        Op("blend", {"base": "weight", "models": "weight", "out": "weight"}, lambda n, k, size: n * size * (k + 2)),
        Op("kept_sums", {"base": "weight", "models": "weight"}, lambda n, k, size: n * size * (k + 1)),
        Op(
            "delta_sum",
            {"base": "weight", "models": "weight", "out": "delta"},
            lambda n, k, size: n * size * (k + 1) + n * max(4, size),
        ),
        Op(
            "highpass",
            {"x": "delta", "out": "delta"},
            lambda n, _, size: n * (2 * size + max(4, size)),  # twice: the spectrum needs all before there is a result
            reach="tensor",
            tolerance=1e-6,
        ),
        Op(
            "highpass_merge",
            {"base": "weight", "models": "weight", "out": "weight"},
            lambda n, k, size: n * size * (2 * (k + 1) + 1),
            reach="tensor",
            tolerance=1e-6,
        ),
        Op("moments", {"base": "weight", "models": "weight"}, lambda n, k, size: n * size * (k + 1)),
        Op("inner_products", {"g": "gradient", "models": "weight"}, lambda n, k, size: n * size * (k + 1)),
        Op("magnitude_histogram", {"base": "weight", "models": "weight"}, lambda n, k, size: n * size * (k + 1)),
        Op(
            "kth_magnitude",
            {"base": "weight", "models": "weight"},
            lambda n, k, size: n * size * (k + 1),
            reach="tensor",
        ),
        Op(
            "rank_drop",
            {"base": "weight", "models": "weight", "masks": "mask"},
            lambda n, k, size: n * size * (k + 1) + k * packed_bytes(n),
            reach="row",
        ),
        Op(
            "extract_topk",
            {"base": "weight", "models": "weight", "values": "delta"},
            lambda n, _, size: 2 * n * size,
            reach="tensor",
        ),
        Op("scatter_add", {"theta": "weight", "values": "delta"}, lambda n, _, size: n * (3 * size + 2)),
        Op("gather", {"theta": "weight", "out": "weight"}, lambda n, _, size: n * (2 * size + 2)),
        Op("scatter", {"theta": "weight", "experts": "weight"}, lambda n, k, size: k * n * (2 * size + 2)),
        Op("pack_bits", {"mask": "mask", "out": "mask"}, lambda n, *_: n + packed_bytes(n)),
        Op("unpack_bits", {"packed": "mask", "out": "mask"}, lambda n, *_: n + packed_bytes(n)),
    )
}
