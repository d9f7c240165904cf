"""The vocabulary: one record and one public function an op.

Every function takes tensors of any shape and any mixture of bfloat16, float16, float32 and float64 on one device
(memory-mapped ones too, without copying them; or arrays, see fastmerge.arrays), K = 1…64 models, writes into `out=`
where given, and computes on the fastest backend of that device or on `backend=`. The arithmetic that all backends share
is stated in kernels/README.md.
Functions that return sums add to `sums=` where given, so that a tensor may be worked on in chunks; cut at multiples of
`BLOCK` elements, the sums are those of the whole tensor to the bit. Argument errors are InputError, an unusable backend
BackendError.

torch is imported by the first call, so that planning and the command line start without it.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from . import dispatch
from .arrays import takes_arrays
from .cutoff import Convention, Cutoff
from .errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Domain = Literal["weight", "delta", "mask", "gradient"]
Reach = Literal["element", "row", "tensor"]  # how a tensor may be cut: anywhere, between rows, not at all
Consensus = Literal["sum", "max", "weighted", "unweighted", "count"]

BLOCK = 65_536  # elements summed in float64 on their own
MAX_MODELS = 64
TOP_BITS = 11  # of magnitudes, that histograms count by
MAX_BIN_BITS = 13


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
    """merged has the models' shape; nonfinite counts its NaN and infinite elements, and where a selection or a vote may
    hide them, those of any task vector."""

    merged: Tensor
    nonfinite: int


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


class InnerProducts(NamedTuple):
    """All float64: ⟨g, θ_k⟩ [K], ‖θ_k‖² [K] and ‖g‖² (0-d)."""

    dots: Tensor
    norms: Tensor
    gradient_norm: Tensor


def expert_of(parts: Sequence[Tensor]) -> Expert | LowRank:
    """An expert of its parts: sparse of three, a product of two."""
    return LowRank(*parts) if len(parts) == 2 else Expert(*parts)


def working_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """What arithmetic is done in: float64 as soon as one input is float64, else float32."""
    import torch

    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


@takes_arrays()
def elect(
    base: Tensor,
    models: Sequence[Tensor],
    *,
    dtype: torch.dtype | None = None,
    out: tuple[Tensor, Tensor] | None = None,
    sums: Tensor | None = None,
    backend: str | None = None,
) -> Elected:
    """EMR-Merging's elect with all K packed masks and rescaler sums in one reading (Huang et al. 2024, Section 3.2).

    `out` is (unified, masks); without it unified has `dtype`, or base's. `sums` is float64 [2, K].
    """
    import torch

    _check("elect", {"base": base, **_numbered(models)})
    shape = (len(models), packed_bytes(base.numel()))
    unified, masks = out or (_empty(base, dtype), base.new_empty(shape, dtype=torch.uint8))
    _check("elect", {"base": base, "unified": unified})
    _check_buffer("masks", masks, shape, torch.uint8, base.device)
    sums = _accumulator(sums, (2, len(models)), base)
    kernel = dispatch.choose("elect", base.device.type, backend)
    with _Flat(unified) as flat_unified, _Flat(masks) as flat_masks:
        kernel(_flat(base), _flat_all(models), flat_unified, flat_masks.view(shape), sums)
    return Elected(unified, masks, sums[0], sums[1])


@takes_arrays()
def modulate(
    base: Tensor,
    unified: Tensor,
    mask: Tensor,
    scale: float,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """One task's model: base + scale · mask ⊙ unified, rounded once (Huang et al. 2024, Eq. 2).

    mask: uint8 [ceil(N/8)], one row of elect's masks; scale: the task's rescaler λ_k. Without `out` the result has
    `dtype`, or base's.
    """
    import torch

    out = _empty(base, dtype) if out is None else out
    _check("modulate", {"base": base, "unified": unified, "out": out})
    _check_buffer("mask", mask, (packed_bytes(base.numel()),), torch.uint8, base.device)
    kernel = dispatch.choose("modulate", base.device.type, backend)
    with _Flat(out) as flat:
        kernel(_flat(base), _flat(unified), _flat(mask), float(scale), flat)
    return out


@takes_arrays()
def low_rank(
    base: Tensor,
    up: Tensor,
    down: Tensor,
    scale: float = 1.0,
    *,
    first: int = 0,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """LoRA merged into its base: base + scale · up · down, rounded once to base's dtype, or that of `out`.

    up: [R, r], r of 1 at least; down: [r, C]; base: the elements of the [R, C] matrix from `first` on, all by default
    (Hu et al. 2021, arXiv 2106.09685, §4.1). The sum over r runs in order, multiply and add rounding apart.
    """
    import torch

    out = _empty(base, None) if out is None else out
    _check("low_rank", {"base": base, "out": out})
    _check("low_rank", {"base": base.new_empty(0), "up": up.reshape(-1)[:0], "down": down.reshape(-1)[:0]})
    if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0] or not up.shape[1]:
        raise InputError(f"low_rank: up {list(up.shape)} and down {list(down.shape)} must be [R, r] and [r, C], r ≥ 1")
    elements = up.shape[0] * down.shape[1]
    if first < 0 or first + base.numel() > elements:
        raise InputError(f"low_rank: base has {base.numel()} elements from {first} on, the product {elements}")
    if not base.numel():
        return out
    wide, columns = working_dtype([base, up, down]), down.shape[1]
    rows = slice(first // columns, -(-(first + base.numel()) // columns))
    own, shared = (t.detach().to(wide).contiguous() for t in (up[rows], down))
    if shared.data_ptr() % wide.itemsize or own.data_ptr() % wide.itemsize:  # in a file they may lie anywhere
        own, shared = own.clone(), shared.clone()
    kernel = dispatch.choose("low_rank", base.device.type, backend)
    with _Flat(out) as flat:
        kernel(_flat(base), own, shared, float(torch.tensor(scale, dtype=wide)), first % columns, flat)
    return out


def modulation(
    jobs: Sequence[tuple[Tensor, Tensor, Tensor, float, Tensor]], *, backend: str | None = None
) -> Callable[[], None]:
    """modulate of many tensors, made ready: what is returned does them all, as often as it is called.

    jobs: base, unified, mask, scale and a contiguous out, all on the CPU or all on GPUs. There a call is one launch for
    all of equal dtypes, on the current stream; it neither allocates nor waits, so that a CUDA graph may capture it.
    """
    import torch

    for base, unified, mask, _, out in jobs:
        _check("modulation", {"base": base, "unified": unified, "out": out})
        _check_buffer("mask", mask, (packed_bytes(base.numel()),), torch.uint8, base.device)
        if not out.is_contiguous():
            raise InputError(f"modulation: out {list(out.shape)} must be contiguous")
    flat = [(*map(_flat, (base, unified, mask)), float(scale), _flat(out)) for base, unified, mask, scale, out in jobs]
    device = jobs[0][0].device.type if jobs else "cpu"
    if backend in (None, "cuda") and dispatch.why_not("modulation", "cuda", device) is None:
        return dispatch.choose("modulation", device, "cuda")(flat)  # type: ignore[no-any-return]
    kernel = dispatch.choose("modulate", device, backend)

    def run() -> None:
        for job in flat:
            kernel(*job)

    return run


@takes_arrays()
def mask_against(
    base: Tensor,
    models: Sequence[Tensor],
    merged: Tensor,
    *,
    tall: Sequence[float] | None = None,
    out: Tensor | None = None,
    sums: Tensor | None = None,
    backend: str | None = None,
) -> Masked:
    """Packed masks and rescaler sums for an already merged task vector (Huang et al. 2024, Table 7).

    A mask is 1 where τ_k has the sign of τ_m or, given `tall` (K numbers λ_k), where |τ_k| ≥ λ_k · |τ_m − τ_k|
    (Wang et al. 2024, TALL-masks, arXiv 2405.07813). merged: a task vector τ_m of base's shape; `out`: uint8
    [K, ceil(N/8)]; `sums`: float64 [2, K].
    """
    import torch

    if tall is not None and len(tall) != len(models):
        raise InputError(f"mask_against: {len(models)} models need as many numbers in tall, there are {len(tall)}")
    _check("mask_against", {"base": base, "merged": merged, **_numbered(models)})
    shape = (len(models), packed_bytes(base.numel()))
    masks = base.new_empty(shape, dtype=torch.uint8) if out is None else out
    _check_buffer("out", masks, shape, torch.uint8, base.device)
    sums = _accumulator(sums, (2, len(models)), base)
    kernel = dispatch.choose("mask_against", base.device.type, backend)
    with _Flat(masks) as flat:
        kernel(_flat(base), _flat_all(models), _flat(merged), tall and list(map(float, tall)), flat.view(shape), sums)
    return Masked(masks, sums[0], sums[1])


@takes_arrays()
def combine(
    base: Tensor | None,
    models: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    *,
    scale: float = 1.0,
    normalize: bool = False,
    consensus: Consensus = "sum",
    merge: Literal["sum", "mean", "weighted_mean"] = "sum",
    kept: Kept | None = None,
    factors: Sequence[float] | None = None,
    offset: int = 0,
    as_delta: bool = False,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Combined:
    """Generalised task arithmetic: base + scale · consensus_k(w_k · τ_k) / divisor (Ilharco et al. 2023).

    Without a base, τ_k is θ_k itself. weights: K numbers, ones by default; `kept` says which elements take part, the
    others count as 0 (trimming, DARE's drop); `factors`, K numbers, rescale what is left of each, and no divisor counts
    them; its cuts and drops count elements from the start of the tensor, of which
    the first here is number `offset`, a multiple of BLOCK. `as_delta` leaves base off. Without `out` the result has
    `dtype`, or base's (the first model's).

    consensus "sum" adds the terms; `normalize` divides by the sum of the weights. "max" takes, per element, the term of
    largest magnitude (MagMax). "weighted", "unweighted" and "count" elect a sign, that of Σ w_k τ_k, of Σ τ_k or of the
    majority (zero: +), and add the terms that have it; merge "mean" divides by their number, "weighted_mean" by the sum
    of their weights where that is not zero (TIES-Merging, Yadav et al. 2023, arXiv 2306.01708).
    """
    weights = [1.0] * len(models) if weights is None else [float(w) for w in weights]
    divisor = _divisor(weights, len(models), normalize, consensus, merge)
    if factors is not None and len(factors) != len(models):
        raise InputError(f"combine: {len(models)} models need as many factors, there are {len(factors)}")
    rescaled = weights if factors is None else [w * float(f) for w, f in zip(weights, factors, strict=True)]
    _check("combine", {**({} if base is None else {"base": base}), **_numbered(models)})
    first = models[0] if base is None else base
    out = _empty(first, dtype) if out is None else out
    _check("combine", {"models[0]": first, "out": out})
    kernel = dispatch.choose("combine", first.device.type, backend)
    flat_base = None if base is None else _flat(base)
    selection = _selection("combine", kept or Kept(), offset, first, len(models))
    with _Flat(out) as flat:
        nonfinite = kernel(
            flat_base, _flat_all(models), rescaled, divisor, float(scale), consensus, as_delta, selection, offset, flat
        )
    return Combined(out, nonfinite)


@takes_arrays()
def blend(
    base: Tensor | None,
    models: Sequence[Tensor],
    weights: Tensor,
    *,
    inner: int,
    offset: int = 0,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Combined:
    """base + Σ_k w_k · τ_k, or without a base Σ_k w_k · θ_k, with weights for every row or column of a tensor.

    weights: float32 [K, G]; element i of the tensor, whose first one here is number `offset`, has the weights of group
    (i // inner) mod G: rows of C elements are inner = C, the C columns of such rows inner = 1 and G = C. Without `out`
    the result has `dtype`, or base's (the first model's).
    """
    import torch

    _check("blend", {**({} if base is None else {"base": base}), **_numbered(models)})
    first = models[0] if base is None else base
    out = _empty(first, dtype) if out is None else out
    _check("blend", {"models[0]": first, "out": out})
    if inner < 1 or offset < 0 or weights.ndim != 2 or weights.shape[1] < 1:
        raise InputError(
            f"blend: weights [K, G], inner and offset must be of a tensor's groups; they are {list(weights.shape)}, "
            f"{inner} and {offset}"
        )
    _check_buffer("weights", weights, (len(models), weights.shape[1]), torch.float32, first.device)
    kernel = dispatch.choose("blend", first.device.type, backend)
    flat_base = None if base is None else _flat(base)
    with _Flat(out) as flat:
        nonfinite = kernel(flat_base, _flat_all(models), weights.contiguous(), inner, offset, flat)
    return Combined(out, nonfinite)


@takes_arrays()
def kept_sums(
    base: Tensor,
    models: Sequence[Tensor],
    kept: Kept,
    *,
    offset: int = 0,
    sums: Tensor | None = None,
    backend: str | None = None,
) -> KeptSums:
    """Σ|τ_k| over all elements and over those kept: what rescaling to the L1 norm before the drop needs.

    `kept` and `offset` as in combine; `sums`: float64 [2, K].
    """
    _check("kept_sums", {"base": base, **_numbered(models)})
    selection = _selection("kept_sums", kept, offset, base, len(models))
    sums = _accumulator(sums, (2, len(models)), base)
    kernel = dispatch.choose("kept_sums", base.device.type, backend)
    kernel(_flat(base), _flat_all(models), selection, offset, sums)
    return KeptSums(sums[0], sums[1])


@takes_arrays()
def geodesic(
    base: Tensor,
    model: Tensor,
    t: float,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Combined:
    """The point t of the way on the arc from base (t = 0) to model (t = 1), each taken as one vector (Shoemake 1985).

    Composed of `inner_products`, `arc` and `combine`. Without `out` the result has `dtype`, or base's.
    """
    products = inner_products(base, [model], backend=backend)
    ends = arc(float(products.dots[0]), float(products.gradient_norm), float(products.norms[0]), t)
    return combine(None, [base, model], ends, dtype=dtype or base.dtype, out=out, backend=backend)


def arc(dot: float, base_norm: float, model_norm: float, t: float) -> tuple[float, float]:
    """What the ends of an arc are multiplied by for its point t, from ⟨a, b⟩, ‖a‖² and ‖b‖², rounded to float32.

    sin((1 − t)ω) / sin ω and sin(tω) / sin ω, ω the angle between them; on the straight line, 1 − t and t, where
    |cos ω| > 0.9995 or one is zero.
    """
    lengths = math.sqrt(base_norm) * math.sqrt(model_norm)
    cosine = dot / lengths if lengths else 1.0
    if not abs(cosine) <= 0.9995:
        ends = 1.0 - t, t
    else:
        angle = math.acos(cosine)
        ends = math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    first, second = (ctypes.c_float(end).value for end in ends)
    return first, second


@takes_arrays()
def delta_sum(
    base: Tensor,
    models: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    *,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Σ_k w_k · τ_k, what a linear filter is applied to: float32, or float64 as soon as an input is float64."""
    weights = [1.0] * len(models) if weights is None else [float(w) for w in weights]
    if len(weights) != len(models):
        raise InputError(f"delta_sum: {len(models)} models need as many weights, there are {len(weights)}")
    _check("delta_sum", {"base": base, **_numbered(models)})
    wide = working_dtype([base, *models])
    out = _empty(base, wide) if out is None else out
    _check("delta_sum", {"base": base, "out": out})
    if out.dtype != wide:
        raise InputError(f"delta_sum: out must be {wide}, the working type of these inputs, not {out.dtype}")
    kernel = dispatch.choose("delta_sum", base.device.type, backend)
    with _Flat(out) as flat:
        kernel(_flat(base), _flat_all(models), weights, flat)
    return out


@takes_arrays()
def highpass(
    x: Tensor,
    *,
    cutoff: float | None = None,
    bins: float | None = None,
    convention: Convention = "paper",
    ratio: float | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The high frequencies of every matrix of x [..., H, W] (Zheng & Wang 2025, Eq. 1-2): float32, or float64 as x is.

    `cutoff` (0.3 if nothing is given), `bins`, or convention="released" and `ratio` (0.7) say which (fastmerge.cutoff).
    Right to 1e-6 of the largest |x| (float64: 1e-13), and to the bit the same for any number of threads.
    """
    limits = Cutoff(cutoff, bins, convention, ratio)
    wide = working_dtype([x])
    out = _empty(x, wide) if out is None else out
    _check("highpass", {"x": x, "out": out})
    if out.dtype != wide:
        raise InputError(f"highpass: out must be {wide}, the working type of this input, not {out.dtype}")
    h, w = _matrix("highpass", "x", x)
    if x.numel():
        kernel = dispatch.choose("highpass", x.device.type, backend)
        with _Flat(out) as flat:
            kernel(_flat(x).view(-1, h, w), convention, limits.limit(h, w), flat.view(-1, h, w))
    return out


@takes_arrays()
def highpass_merge(
    base: Tensor,
    models: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    *,
    cutoff: float | None = None,
    bins: float | None = None,
    convention: Convention = "paper",
    ratio: float | None = None,
    scale: float = 1.0,
    as_delta: bool = False,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Combined:
    """base + scale · highpass(Σ_k w_k · τ_k), rounded once (Zheng & Wang 2025): one filter, since it is linear.

    base and models: [..., H, W]; weights: K numbers, ones by default; the filter as in `highpass`, and as right (of the
    largest |Σ_k w_k · τ_k|, before scale and rounding); `as_delta` leaves base off. Without `out` the result has
    `dtype`, or base's.
    """
    limits = Cutoff(cutoff, bins, convention, ratio)
    weights = [1.0] * len(models) if weights is None else [float(w) for w in weights]
    if len(weights) != len(models):
        raise InputError(f"highpass_merge: {len(models)} models need as many weights, there are {len(weights)}")
    out = _empty(base, dtype) if out is None else out
    _check("highpass_merge", {"base": base, "out": out, **_numbered(models)})
    h, w = _matrix("highpass_merge", "base", base)
    nonfinite = 0
    if base.numel():
        kernel = dispatch.choose("highpass_merge", base.device.type, backend)
        matrices = [_flat(t).view(-1, h, w) for t in (base, *models)]
        limit = limits.limit(h, w)
        with _Flat(out) as flat:
            to = flat.view(-1, h, w)
            nonfinite = kernel(matrices[0], matrices[1:], weights, convention, limit, float(scale), as_delta, to)
    return Combined(out, nonfinite)


class Filtered:
    """highpass_merge in pieces: Σ_k w_k · τ_k filtered, of which `write` merges any elements, to the bits of the whole.

    base and models: [..., H, W], and as they are until the last piece; limits: the filter. Between two pieces it holds
    the transforms of one matrix; in order they cost least.
    """

    def __init__(
        self,
        base: Tensor,
        models: Sequence[Tensor],
        weights: Sequence[float],
        limits: Cutoff,
        *,
        backend: str | None = None,
    ) -> None:
        if len(weights) != len(models):
            raise InputError(f"Filtered: {len(models)} models need as many weights, there are {len(weights)}")
        _check("Filtered", {"base": base, **_numbered(models)})
        h, w = _matrix("Filtered", "base", base)
        self.like = base
        kernel = dispatch.choose("Filtered", base.device.type, backend)
        first, *others = (_flat(t).view(-1, h, w) for t in (base, *models))
        self._filtered = kernel(first, others, list(map(float, weights)), limits.convention, limits.limit(h, w))

    def write(self, start: int, out: Tensor, *, scale: float = 1.0, as_delta: bool = False) -> int:
        """Merge out's elements, of which the first is number `start` in C order; returns its non-finite ones.

        out: 1-D, contiguous; `scale` and `as_delta` as in highpass_merge.
        """
        stop = start + out.numel()
        if not 0 <= start <= stop <= self.like.numel() or out.ndim != 1 or not out.is_contiguous():
            raise InputError(
                f"Filtered: elements {start} to {stop} of {self.like.numel()} go to a 1-D contiguous out, "
                f"not {list(out.shape)}"
            )
        return self._filtered.write(start, float(scale), as_delta, out.detach())  # type: ignore[no-any-return]

    @staticmethod
    def magnitudes(
        base: Tensor, models: Sequence[Tensor], limits: Cutoff, *, backend: str | None = None
    ) -> list[float]:
        """Σ|G(τ_k)| of every model, in float64. It holds the transforms of a matrix of each of them."""
        _check("Filtered", {"base": base, **_numbered(models)})
        h, w = _matrix("Filtered", "base", base)
        kernel: Any = dispatch.choose("Filtered", base.device.type, backend)
        first, *others = (_flat(t).view(-1, h, w) for t in (base, *models))
        return list(kernel.magnitudes(first, others, limits.convention, limits.limit(h, w)))


@takes_arrays()
def moments(
    base: Tensor,
    models: Sequence[Tensor],
    *,
    sums: Tensor | None = None,
    nonfinite: Tensor | None = None,
    backend: str | None = None,
) -> Moments:
    """Σ|τ_k|, Σ τ_k, Σ τ_k², max|τ_k| and the non-finite elements of every model in one reading.

    `sums`: float64 [4, K]; `nonfinite`: int64 [K]. Both are added to (max|τ_k| is raised).
    """
    import torch

    _check("moments", {"base": base, **_numbered(models)})
    sums = _accumulator(sums, (4, len(models)), base)
    nonfinite = _accumulator(nonfinite, (len(models),), base, torch.int64, "nonfinite")
    dispatch.choose("moments", base.device.type, backend)(_flat(base), _flat_all(models), sums, nonfinite)
    return Moments(sums[0], sums[1], sums[2], sums[3], nonfinite)


@takes_arrays()
def inner_products(
    g: Tensor, models: Sequence[Tensor], *, sums: Tensor | None = None, backend: str | None = None
) -> InnerProducts:
    """⟨g, θ_k⟩, ‖θ_k‖² and ‖g‖² for all K in one reading: the scores of a Frank-Wolfe step. `sums`: float64 [2K+1]."""
    _check("inner_products", {"g": g, **_numbered(models)})
    k = len(models)
    sums = _accumulator(sums, (2 * k + 1,), g)
    dispatch.choose("inner_products", g.device.type, backend)(_flat(g), _flat_all(models), sums)
    return InnerProducts(sums[:k], sums[k : 2 * k], sums[2 * k])


@takes_arrays()
def magnitude_histogram(
    base: Tensor,
    models: Sequence[Tensor],
    *,
    shift: int | None = None,
    bits: int = TOP_BITS,
    prefixes: Sequence[int] | None = None,
    wide: bool = False,
    counts: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """How many |τ_k| there are by `bits` (1 … 13) bits of them, as integers: int64 [K, 2^bits].

    Magnitudes have 31 bits in float32; in float64, or if `wide`, 63. The highest are counted by unless `shift` says how
    many stand below those counted by; with `prefixes`, K numbers, only magnitudes whose bits above are these. `counts`
    is added to: wide histograms of a model's tensors add up to the whole model's, whatever their dtypes.
    """
    import torch

    _check("magnitude_histogram", {"base": base, **_numbered(models)})
    key_bits = _key_bits(base, models, wide)
    shift = key_bits - bits if shift is None else shift
    if not 1 <= bits <= MAX_BIN_BITS or not 0 <= shift <= key_bits - bits:
        raise InputError(
            f"magnitude_histogram: shift {shift} and bits {bits} must be 1 to {MAX_BIN_BITS} of {key_bits} bits"
        )
    if prefixes is not None and len(prefixes) != len(models):
        raise InputError(f"magnitude_histogram: {len(models)} models need as many prefixes, there are {len(prefixes)}")
    for prefix in prefixes or ():
        if not 0 <= prefix < 1 << (key_bits - bits - shift):
            raise InputError(f"magnitude_histogram: prefix {prefix} has not the {key_bits - bits - shift} bits above")
    counts = _accumulator(counts, (len(models), 1 << bits), base, torch.int64, "counts")
    kernel = dispatch.choose("magnitude_histogram", base.device.type, backend)
    kernel(_flat(base), _flat_all(models), shift, bits, prefixes, wide, counts)
    return counts


@takes_arrays()
def kth_magnitude(
    base: Tensor,
    models: Sequence[Tensor],
    ranks: Sequence[Sequence[int]],
    *,
    backend: str | None = None,
) -> list[list[Cut]]:
    """For each model the cuts that have exactly so many elements above them: exact, without sorting.

    ranks: for each model as many, of 0 … N.
    The cut of rank 0 is (∞, 0). NaN count as larger than infinity, but nothing is above a cut at NaN.
    """
    import torch

    _check("kth_magnitude", {"base": base, **_numbered(models)})
    _check_ranks(ranks, len(models), base.numel())
    shape = len(models), len(ranks[0])
    magnitudes, indices = base.new_empty(shape, dtype=torch.float64), base.new_empty(shape, dtype=torch.int64)
    kernel = dispatch.choose("kth_magnitude", base.device.type, backend)
    kernel(_flat(base), _flat_all(models), [list(row) for row in ranks], magnitudes, indices)
    rows = zip(magnitudes.tolist(), indices.tolist(), strict=True)
    return [[Cut(*cut) for cut in zip(*row, strict=True)] for row in rows]


@takes_arrays()
def rank_drop(
    base: Tensor,
    models: Sequence[Tensor],
    columns: int,
    keys: Sequence[int],
    thresholds: Sequence[Tensor],
    *,
    start: int = 0,
    stop: int | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Packed masks uint8 [K, ceil((stop - start)/8)] of a random choice by rank (DELLA, Deep et al. 2024, Section 3.1).

    base, models: whole tensors, in rows of `columns` elements; keys: for each model the 64-bit key of its random words;
    thresholds: for each model int64 [columns], 0 … 2^32. An element is dropped where its word is below the threshold of
    its rank in its row, the smallest magnitude having rank 0 and of equal ones the first the lower. `start`, a multiple
    of BLOCK, and `stop` choose the elements that masks are wanted of; rows that they cut are ranked whole.
    """
    import torch

    _check("rank_drop", {"base": base, **_numbered(models)})
    n, k = base.numel(), len(models)
    stop = n if stop is None else stop
    problems = []
    if not 1 <= columns < 1 << 31 or n % columns:
        problems.append(f"rank_drop: {n} elements are not rows of {columns}")
    if not 0 <= start <= stop <= n or start % BLOCK:
        problems.append(f"rank_drop: start {start} (a multiple of {BLOCK}) and stop {stop} must be in order in 0 … {n}")
    if len(keys) != k or len(thresholds) != k:
        problems.append(f"rank_drop: {k} models need as many keys and thresholds, not {len(keys)}, {len(thresholds)}")
    if any(not 0 <= key < 1 << 64 for key in keys):
        problems.append("rank_drop: keys must be of 64 bits")
    if problems:
        raise InputError(problems)
    for i, limits in enumerate(thresholds):
        _check_buffer(f"thresholds[{i}]", limits, (columns,), torch.int64, base.device)
        if not 0 <= int(limits.min()) <= int(limits.max()) <= 1 << 32:
            raise InputError(f"rank_drop: thresholds[{i}] must be in 0 … 2^32")
    shape = k, packed_bytes(stop - start)
    masks = base.new_empty(shape, dtype=torch.uint8) if out is None else out
    _check_buffer("out", masks, shape, torch.uint8, base.device)
    kernel = dispatch.choose("rank_drop", base.device.type, backend)
    with _Flat(masks) as flat:
        kernel(
            _flat(base),
            _flat_all(models),
            columns,
            keys,
            [limits.contiguous() for limits in thresholds],
            start,
            stop,
            flat.view(shape),
        )
    return masks


@takes_arrays()
def extract_topk(
    base: Tensor,
    model: Tensor,
    k: int | None = None,
    *,
    cut: Cut | None = None,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Expert:
    """The k elements of the task vector that are largest in magnitude, of equal ones the first; or those above `cut`.

    Values have `dtype`, or base's (Zheng & Wang 2024, Section 3.3). NaN are never among them, and may make them fewer.
    """
    import torch

    if (k is None) == (cut is None):
        raise InputError("extract_topk: either k or a cut says how much to extract")
    _check("extract_topk", {"base": base, "model": model})
    kernel = dispatch.choose("extract_topk", base.device.type, backend)
    flat_base, flat_model = _flat(base), _flat(model)
    counts = base.new_empty(-(-base.numel() // BLOCK), dtype=torch.int32)

    def extract(cut: Cut, room: int) -> tuple[int, Tensor, Tensor]:
        offsets, values = base.new_empty(room, dtype=torch.uint16), base.new_empty(room, dtype=dtype or base.dtype)
        return kernel(flat_base, flat_model, *cut, counts, offsets, values), offsets, values

    if k is not None:
        ((cut,),) = kth_magnitude(base, [model], [[k]], backend=backend)
    assert cut is not None
    found, offsets, values = extract(cut, k or 0)
    if found > offsets.numel():
        found, offsets, values = extract(cut, found)
    return Expert(counts, offsets[:found], values[:found])


@takes_arrays("theta")
def scatter_add(theta: Tensor, expert: Expert, scale: float = 1.0, *, backend: str | None = None) -> None:
    """theta += scale · expert, in place and only where the expert has elements, each sum rounded once."""
    _check("scatter_add", {"theta": theta})
    _check("scatter_add", {"the expert's values": expert.values})
    _check_expert(theta, expert, expert.values.dtype)
    kernel = dispatch.choose("scatter_add", theta.device.type, backend)
    with _Flat(theta) as flat:
        _need_elements("scatter_add", theta, [expert], kernel(flat, *map(_flat, expert), float(scale)))


@takes_arrays()
def gather(theta: Tensor, expert: Expert, *, out: Tensor | None = None, backend: str | None = None) -> Tensor:
    """What theta has at an expert's elements, to the bit: [k], theta's dtype. The expert's values play no part."""
    out = theta.new_empty(expert.offsets.shape) if out is None else out
    _check("gather", {"theta": theta})
    _check_expert(theta, expert._replace(values=out), theta.dtype)
    kernel = dispatch.choose("gather", theta.device.type, backend)
    with _Flat(out) as flat:
        fit = kernel(_flat(theta), _flat(expert.counts), _flat(expert.offsets), flat)
        _need_elements("gather", theta, [expert], fit)
    return out


@takes_arrays("theta")
def scatter(theta: Tensor, experts: Sequence[Expert], *, backend: str | None = None) -> None:
    """Write experts' values in the place of theta's, to the bit, one expert after the other: the last one's stays.

    Values have theta's dtype. Where an expert does not fit theta, InputError is raised and nothing changed.
    """
    _check("scatter", {"theta": theta})
    for expert in experts:
        _check_expert(theta, expert, theta.dtype)
    kernel = dispatch.choose("scatter", theta.device.type, backend)
    with _Flat(theta) as flat:
        _need_elements("scatter", theta, experts, kernel(flat, [tuple(map(_flat, expert)) for expert in experts]))


def scattering(jobs: Sequence[tuple[Tensor, Sequence[Expert]]], *, backend: str | None = None) -> Callable[[], None]:
    """scatter of many tensors, made ready: what is returned does them all, as often as it is called.

    jobs: a contiguous theta and its experts, all on the CPU or all on GPUs. There a call is a launch an expert, on the
    current stream; it neither allocates nor waits, so that a CUDA graph may capture it.
    """
    for theta, experts in jobs:
        _check("scattering", {"theta": theta})
        if not theta.is_contiguous():
            raise InputError(f"scattering: theta {list(theta.shape)} must be contiguous")
        for expert in experts:
            _check_expert(theta, expert, theta.dtype)
    flat = [(_flat(theta), [tuple(map(_flat, expert)) for expert in experts]) for theta, experts in jobs]
    device = jobs[0][0].device.type if jobs else "cpu"
    if backend in (None, "cuda") and dispatch.why_not("scattering", "cuda", device) is None:
        run: Callable[[], None] | None = dispatch.choose("scattering", device, "cuda")(flat)
        if run is None:
            raise InputError("scattering: an expert's counts and offsets are not those of elements of its tensor")
        return run

    def each() -> None:
        for theta, experts in jobs:
            scatter(theta, experts, backend=backend)

    return each


@takes_arrays()
def pack_bits(mask: Tensor, *, out: Tensor | None = None, backend: str | None = None) -> Tensor:
    """A bool tensor of N elements as uint8 [ceil(N/8)]: bit i of byte j is element 8j + i, padded with zeros."""
    import torch

    shape = (packed_bytes(mask.numel()),)
    _check_buffer("mask", mask, tuple(mask.shape), torch.bool, mask.device)
    out = mask.new_empty(shape, dtype=torch.uint8) if out is None else out
    _check_buffer("out", out, shape, torch.uint8, mask.device)
    kernel = dispatch.choose("pack_bits", mask.device.type, backend)
    with _Flat(out) as flat:
        kernel(_flat(mask), flat)
    return out


@takes_arrays()
def unpack_bits(
    packed: Tensor, shape: Sequence[int], *, out: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """The reverse of pack_bits: a bool tensor of `shape`."""
    import torch

    out = packed.new_empty(tuple(shape), dtype=torch.bool) if out is None else out
    _check_buffer("out", out, tuple(shape), torch.bool, packed.device)
    _check_buffer("packed", packed, (packed_bytes(out.numel()),), torch.uint8, packed.device)
    kernel = dispatch.choose("unpack_bits", packed.device.type, backend)
    with _Flat(out) as flat:
        kernel(_flat(packed), flat)
    return out


def _divisor(weights: list[float], k: int, normalize: bool, consensus: str, merge: str) -> float | list[float]:
    """What combine divides by: a number, or K of which those of the terms that agree are added up."""
    divisors: dict[str, float | list[float]] = {"sum": 1.0, "mean": [1.0] * k, "weighted_mean": weights}
    voted = consensus in ("weighted", "unweighted", "count")
    problems = []
    if len(weights) != k:
        problems.append(f"combine: {k} models need as many weights, there are {len(weights)}")
    elif normalize and sum(weights) == 0:
        problems.append(f"combine: the weights {weights} sum to zero and cannot be normalized")
    if not voted and consensus not in ("sum", "max"):
        problems.append(
            f"combine: consensus is 'sum', 'max', or a vote, 'weighted', 'unweighted' or 'count', not {consensus!r}"
        )
    if merge not in divisors:
        problems.append(f"combine: merge is 'sum', 'mean' or 'weighted_mean', not {merge!r}")
    elif not voted and merge != "sum":
        problems.append(f"combine: merge {merge!r} needs a vote; with consensus {consensus!r} use normalize")
    if voted and normalize:
        problems.append(f"combine: normalize is for consensus 'sum' and 'max'; with {consensus!r} use merge")
    if problems:
        raise InputError(problems)
    return float(sum(weights)) if normalize else divisors[merge]


def _selection(op: str, kept: Kept, offset: int, like: Tensor, k: int) -> tuple[object, object, Tensor | None]:
    """`kept` as backends take it: plain numbers, unbounded windows with cuts that exclude nothing."""
    import torch

    problems = []
    if offset < 0 or offset % BLOCK:
        problems.append(f"{op}: offset must be a multiple of {BLOCK}, it is {offset}")
    for name, part in (("windows in trim", kept.trim), ("drops", kept.drop)):
        if part is not None and len(part) != k:
            problems.append(f"{op}: {k} models need as many {name}, there are {len(part)}")
    for i, window in enumerate(kept.trim or ()):
        for side, cut in zip(Window._fields, window, strict=True):
            if cut is not None and (cut.magnitude < 0 or not 0 <= cut.index < 1 << 63):
                problems.append(f"{op}: {side} of trim[{i}] is {cut}, a magnitude and an index are not negative")
    for i, (key, threshold) in enumerate(kept.drop or ()):
        if not 0 <= key < 1 << 64:
            problems.append(f"{op}: the key of drop[{i}] must have 64 bits, it is {key}")
        if not 0 <= threshold <= 1 << 32:
            problems.append(f"{op}: the threshold of drop[{i}] must be from 0 to 2^32, it is {threshold}")
    if problems:
        raise InputError(problems)
    trim, drop, keep = kept
    if keep is not None:
        shape = (k, packed_bytes(like.numel()))
        _check_buffer("keep", keep, shape, torch.uint8, like.device)
        keep = _flat(keep).view(shape)
    plain_trim = None if trim is None else [(*(w.top or (float("inf"), 0)), *(w.bottom or (-1.0, 0))) for w in trim]
    return plain_trim, None if drop is None else [tuple(d) for d in drop], keep


class _Flat:
    """A 1-D contiguous stand-in for an output; where the output is not contiguous it is copied there at the end."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()
        self.flat = self.tensor.contiguous().view(-1)

    def __enter__(self) -> Tensor:
        return self.flat

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is None and not self.tensor.is_contiguous():
            self.tensor.copy_(self.flat.view(self.tensor.shape))


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1)


def _flat_all(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [_flat(t) for t in tensors]


def _numbered(models: Sequence[Tensor]) -> dict[str, Tensor]:
    if not 1 <= len(models) <= MAX_MODELS:
        raise InputError(f"1 to {MAX_MODELS} models can be merged, these are {len(models)}")
    return {f"models[{k}]": m for k, m in enumerate(models)}


def _matrix(op: str, name: str, tensor: Tensor) -> tuple[int, int]:
    """Height and width of the matrices that a tensor is made of."""
    if tensor.ndim < 2:
        raise InputError(
            f"{op}: {name} has shape {list(tensor.shape)}, expected matrices [..., H, W]; view a vector as [1, N]"
        )
    return tensor.shape[-2], tensor.shape[-1]


def _empty(like: Tensor, dtype: torch.dtype | None) -> Tensor:
    return like.new_empty(like.shape, dtype=dtype or like.dtype)


def _key_bits(base: Tensor, models: Sequence[Tensor], wide: bool = False) -> int:
    """How many bits a magnitude has."""
    return 63 if wide or working_dtype([base, *models]).itemsize == 8 else 31


def _check_ranks(ranks: Sequence[Sequence[int]], models: int, n: int) -> None:
    if len(ranks) != models or len({len(row) for row in ranks}) != 1:
        raise InputError(f"kth_magnitude: ranks must be {models} lists of equal length, one a model, not {ranks}")
    for k, row in enumerate(ranks):
        for rank in row:
            if not 0 <= rank <= n:
                raise InputError(f"kth_magnitude: rank {rank} of models[{k}] is not one of 0 to {n}, its elements")


def _check_expert(theta: Tensor, expert: Expert, dtype: torch.dtype) -> None:
    import torch

    k, device = expert.values.numel(), theta.device
    _check_buffer("the expert's counts", expert.counts, (-(-theta.numel() // BLOCK),), torch.int32, device)
    _check_buffer("the expert's offsets", expert.offsets, (k,), torch.uint16, device)
    _check_buffer("the expert's values", expert.values, (k,), dtype, device)


def _need_elements(op: str, theta: Tensor, experts: Sequence[Expert], fit: bool) -> None:
    if not fit:
        k = " or ".join(str(expert.offsets.numel()) for expert in experts)
        raise InputError(f"{op}: the expert's counts and offsets are not those of {k} of {theta.numel()} elements")


def _accumulator(
    given: Tensor | None,
    shape: tuple[int, ...],
    like: Tensor,
    dtype: torch.dtype | None = None,
    name: str = "sums",
) -> Tensor:
    """What a backend adds to: the tensor given, float64 unless said, or zeros."""
    import torch

    dtype = dtype or torch.float64
    if given is None:
        return like.new_zeros(shape, dtype=dtype)
    _check_buffer(name, given, shape, dtype, like.device)
    if not given.is_contiguous():
        raise InputError(f"{name} must be contiguous")
    return given


def _check(op: str, tensors: Mapping[str, Tensor]) -> None:
    """All tensors have the first one's shape and device, and a dtype that merges. Reports every problem."""
    (first, like), *_ = tensors.items()
    problems = []
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            problems.append(f"{op}: {name} is {tensor.dtype}, expected bfloat16, float16, float32 or float64")
        if tensor.shape != like.shape:
            problems.append(f"{op}: {name} has shape {list(tensor.shape)}, {first} has {list(like.shape)}")
        if tensor.device != like.device:
            problems.append(f"{op}: {name} is on {tensor.device}, {first} on {like.device}")
    if problems:
        raise InputError(problems)


def _check_buffer(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device != device:
        raise InputError(
            f"{name} must be {dtype} {list(shape)} on {device}, "
            f"it is {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
        )
