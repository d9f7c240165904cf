"""What ops take and give beside tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Elected(NamedTuple):
    """unified has base's shape; masks is uint8 [K, ceil(N/8)]; magnitude (Σ|τ_k|) and kept (Σ mask_k·|unified|) are
    float64 [K]."""

    unified: Tensor
    masks: Tensor
    magnitude: Tensor
    kept: Tensor


class Masked(NamedTuple):
    """masks is uint8 [K, ceil(N/8)]; magnitude (Σ|τ_k|) and kept (Σ mask_k·|τ_m|) are float64 [K]."""

    masks: Tensor
    magnitude: Tensor
    kept: Tensor


class Cut(NamedTuple):
    """Divides a tensor by |τ|: above it are larger magnitudes, and equal ones before `index`, counted from the tensor's
    start. The cut of rank r has r elements above it; that of rank 0 is (∞, 0)."""

    magnitude: float
    index: int  # type: ignore[assignment]  # not tuple's method


class Window(NamedTuple):
    """The elements not above `top` and not below `bottom`; None: no bound on that side."""

    top: Cut | None = None
    bottom: Cut | None = None


class Drop(NamedTuple):
    """Random drop: element i goes where its Philox word under `key` (64 bits) is less than `threshold` (0 … 2^32)."""

    key: int
    threshold: int


class Kept(NamedTuple):
    """Which elements of each model take part: all that no part of it excludes. One window and one drop a model; keep:
    uint8 [K, ceil(N/8)], packed as by pack_bits."""

    trim: Sequence[Window] | None = None
    drop: Sequence[Drop] | None = None
    keep: Tensor | None = None


class KeptSums(NamedTuple):
    """Σ|τ_k| over all elements, and over those kept; float64 [K]."""

    magnitude: Tensor
    kept: Tensor


class Combined(NamedTuple):
    """merged has the models' shape; `nonfinite` counts its NaN and infinite elements, and where a selection or a vote
    may hide them, those of any task vector. Where a GPU is still at it, asking for the number waits."""

    merged: Tensor
    counted: int | Callable[[], int]

    @property
    def nonfinite(self) -> int:
        return self.counted() if callable(self.counted) else self.counted


class Moments(NamedTuple):
    """All [K]: Σ|τ_k|, Σ τ_k, Σ τ_k², max|τ_k| in float64, and the number of non-finite elements in int64."""

    magnitude: Tensor
    total: Tensor
    energy: Tensor
    peak: Tensor
    nonfinite: Tensor


class Expert(NamedTuple):
    """Elements of a task vector, in order: how many each block of 65 536 has (int32 [ceil(N/65 536)]), where in its
    block each stands (uint16 [k]), and their values ([k])."""

    counts: Tensor
    offsets: Tensor
    values: Tensor


class LowRank(NamedTuple):
    """A matrix [R, C] of rank r at most, as a product: up [R, r] and down [r, C]."""

    up: Tensor
    down: Tensor


class Varied(NamedTuple):
    """variance has base's shape and the working type; `nonzero` counts its elements that are not 0."""

    variance: Tensor
    nonzero: int


class Bounds(NamedTuple):
    """Of a task vector: the magnitudes it is clamped to, and the scores that give no weight and the full one."""

    least: float
    most: float
    low: float = 0.0
    high: float = 0.0


class InnerProducts(NamedTuple):
    """All float64: ⟨g, θ_k⟩ [K], ‖θ_k‖² [K] and ‖g‖² (0-d)."""

    dots: Tensor
    norms: Tensor
    gradient_norm: Tensor


def expert_of(parts: Sequence[Tensor]) -> Expert | LowRank:
    """An expert of its parts: sparse of three, a product of two."""
    return LowRank(*parts) if len(parts) == 2 else Expert(*parts)
