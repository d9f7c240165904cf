"""Sums of task vectors."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from .. import dispatch
from ..arrays import takes_arrays
from ..errors import InputError
from ..weights import cancel
from ._arguments import (
    _accumulator,
    _check,
    _check_buffer,
    _empty,
    _Flat,
    _flat,
    _flat_all,
    _numbered,
    _working,
    working_dtype,
)
from .records import BLOCK, packed_bytes
from .results import Combined, Kept, KeptSums, Window
from .statistics import inner_products

if TYPE_CHECKING:
    import torch
    from torch import Tensor


Consensus = Literal["sum", "max", "weighted", "unweighted", "count"]


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
    _check("low_rank", {"base": base}, out=out)
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
    kernel = dispatch.choose("low_rank", base.device, backend)
    with _Flat(out) as flat:
        kernel(_flat(base), own, shared, float(torch.tensor(scale, dtype=wide)), first % columns, flat)
    return out


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
    others count as 0 (trimming, DARE's drop); `factors`, K numbers, rescale what is left of each, and neither a divisor
    nor an unweighted vote counts them; its cuts and drops count elements from the start of the tensor, of which the
    first here is number `offset`, a multiple of BLOCK. `as_delta` leaves base off. Without `out` the result has
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
    tensors = {**({} if base is None else {"base": base}), **_numbered(models)}
    first = models[0] if base is None else base
    out = _empty(first, dtype) if out is None else out
    _check("combine", tensors, out=out)
    kernel = dispatch.choose("combine", first.device, backend)
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

    tensors = {**({} if base is None else {"base": base}), **_numbered(models)}
    first = models[0] if base is None else base
    out = _empty(first, dtype) if out is None else out
    _check("blend", tensors, out=out)
    if inner < 1 or offset < 0 or weights.ndim != 2 or weights.shape[1] < 1:
        raise InputError(
            f"blend: weights [K, G], inner and offset must be of a tensor's groups; they are {list(weights.shape)}, "
            f"{inner} and {offset}"
        )
    _check_buffer("weights", weights, (len(models), weights.shape[1]), torch.float32, first.device)
    kernel = dispatch.choose("blend", first.device, backend)
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
    kernel = dispatch.choose("kept_sums", base.device, backend)
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
    out = _working("delta_sum", base, models, out)
    kernel = dispatch.choose("delta_sum", base.device, backend)
    with _Flat(out) as flat:
        kernel(_flat(base), _flat_all(models), weights, flat)
    return out


def _divisor(weights: list[float], k: int, normalize: bool, consensus: str, merge: str) -> float | list[float]:
    """What combine divides by: a number, or K of which those of the terms that agree are added up."""
    divisors: dict[str, float | list[float]] = {"sum": 1.0, "mean": [1.0] * k, "weighted_mean": weights}
    voted = consensus in ("weighted", "unweighted", "count")
    problems = []
    if len(weights) != k:
        problems.append(f"combine: {k} models need as many weights, there are {len(weights)}")
    elif normalize and cancel(weights):
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
    """`kept` as backends take it: plain numbers, unbounded windows with cuts that exclude nothing, contiguous rows."""
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
        keep = keep.detach() if keep.stride(1) == 1 else keep.detach().contiguous()  # rows may be parts of longer ones
    plain_trim = None if trim is None else [(*(w.top or (float("inf"), 0)), *(w.bottom or (-1.0, 0))) for w in trim]
    return plain_trim, None if drop is None else [tuple(d) for d in drop], keep
