"""The vocabulary: one record and one public function an op.

Every function takes tensors of any shape and any mixture of bfloat16, float16, float32 and float64 on one device
(memory-mapped ones too, without copying them), K = 1…64 models, writes into `out=` where given, and computes on the
fastest backend of that device or on `backend=`. The arithmetic that all backends share is stated in kernels/README.md.
Functions that return sums add to `sums=` where given, so that a tensor may be worked on in chunks; cut at multiples of
`BLOCK` elements, the sums are those of the whole tensor to the bit. Argument errors are InputError, an unusable backend
BackendError.

torch is imported by the first call, so that planning and the command line start without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from . import dispatch
from .errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Domain = Literal["weight", "delta", "mask", "gradient"]
Reach = Literal["element", "row", "tensor"]  # how a tensor may be cut: anywhere, between rows, not at all

BLOCK = 65_536  # elements summed in float64 on their own
MAX_MODELS = 64


@dataclass(frozen=True, slots=True)
class Op:
    """What the engine and the benchmarks know of an op.

    `traffic(n, k, itemsize)` is the least number of bytes that must move for n elements, k models and inputs and
    outputs of `itemsize` bytes. Elementwise results equal the reference's bit for bit; sums agree to `sums_rtol`.
    """

    name: str
    domains: Mapping[str, Domain]
    traffic: Callable[[int, int, int], int]
    reach: Reach = "element"
    sums_rtol: float = 1e-12


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
        Op(
            "delta_sum",
            {"base": "weight", "models": "weight", "out": "delta"},
            lambda n, k, size: n * size * (k + 1) + n * max(4, size),
        ),
        Op("moments", {"base": "weight", "models": "weight"}, lambda n, k, size: n * size * (k + 1)),
        Op("inner_products", {"g": "gradient", "models": "weight"}, lambda n, k, size: n * size * (k + 1)),
        Op("gather", {"theta": "weight", "out": "weight"}, lambda n, _, size: n * (2 + 2 * size)),  # n: of the expert
        Op("scatter", {"theta": "weight", "experts": "weight"}, lambda n, k, size: k * n * (2 + 2 * size)),
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
    """Divides the magnitudes of a tensor: above are the greater ones, and of those equal the ones before `index`."""

    magnitude: float
    index: int  # type: ignore[assignment]


class Combined(NamedTuple):
    """merged has the models' shape; nonfinite counts its NaN and infinite elements."""

    merged: Tensor
    nonfinite: int


class Expert(NamedTuple):
    """Some elements of a tensor of N, and a value for each. counts: int32 [ceil(N/65 536)], how many of the k elements
    each block of 65 536 has; offsets: uint16 [k], where in its block each is, in order; values: [k]."""

    counts: Tensor
    offsets: Tensor
    values: Tensor


class Moments(NamedTuple):
    """All [K]: Σ|τ_k|, Σ τ_k, Σ τ_k², max|τ_k| in float64, and the number of non-finite elements in int64."""

    magnitude: Tensor
    total: Tensor
    energy: Tensor
    peak: Tensor
    nonfinite: Tensor


class InnerProducts(NamedTuple):
    """All float64: ⟨g, θ_k⟩ [K], ‖θ_k‖² [K] and ‖g‖² (0-d)."""

    dots: Tensor
    norms: Tensor
    gradient_norm: Tensor


def working_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """What arithmetic is done in: float64 as soon as one input is float64, else float32."""
    import torch

    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


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


def mask_against(
    base: Tensor,
    models: Sequence[Tensor],
    merged: Tensor,
    *,
    out: Tensor | None = None,
    sums: Tensor | None = None,
    backend: str | None = None,
) -> Masked:
    """Packed masks and rescaler sums for an already merged task vector (Huang et al. 2024, Table 7).

    merged: a task vector τ_m of base's shape; `out`: uint8 [K, ceil(N/8)]; `sums`: float64 [2, K].
    """
    import torch

    _check("mask_against", {"base": base, "merged": merged, **_numbered(models)})
    shape = (len(models), packed_bytes(base.numel()))
    masks = base.new_empty(shape, dtype=torch.uint8) if out is None else out
    _check_buffer("out", masks, shape, torch.uint8, base.device)
    sums = _accumulator(sums, (2, len(models)), base)
    kernel = dispatch.choose("mask_against", base.device.type, backend)
    with _Flat(masks) as flat:
        kernel(_flat(base), _flat_all(models), _flat(merged), flat.view(shape), sums)
    return Masked(masks, sums[0], sums[1])


def combine(
    base: Tensor | None,
    models: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    *,
    scale: float = 1.0,
    normalize: bool = False,
    consensus: Literal["sum", "max"] = "sum",
    as_delta: bool = False,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Combined:
    """Generalised task arithmetic: base + scale · consensus_k(w_k · τ_k) / divisor (Ilharco et al. 2023).

    Without a base, τ_k is θ_k itself. weights: K numbers, ones by default; `normalize` divides by their sum;
    consensus "max" takes, per element, the term of largest magnitude (MagMax); `as_delta` leaves base off. Without
    `out` the result has `dtype`, or base's (the first model's).
    """
    weights = [1.0] * len(models) if weights is None else [float(w) for w in weights]
    if len(weights) != len(models):
        raise InputError(f"combine: {len(models)} models need as many weights, there are {len(weights)}")
    divisor = sum(weights) if normalize else 1.0
    if divisor == 0:
        raise InputError(f"combine: the weights {weights} sum to zero and cannot be normalized")
    if consensus not in ("sum", "max"):
        raise InputError(f"combine: consensus is 'sum' or 'max', not {consensus!r}")
    _check("combine", {**({} if base is None else {"base": base}), **_numbered(models)})
    first = models[0] if base is None else base
    out = _empty(first, dtype) if out is None else out
    _check("combine", {"models[0]": first, "out": out})
    kernel = dispatch.choose("combine", first.device.type, backend)
    flat_base = None if base is None else _flat(base)
    with _Flat(out) as flat:
        nonfinite = kernel(flat_base, _flat_all(models), weights, divisor, float(scale), consensus, as_delta, flat)
    return Combined(out, nonfinite)


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


def inner_products(
    g: Tensor, models: Sequence[Tensor], *, sums: Tensor | None = None, backend: str | None = None
) -> InnerProducts:
    """⟨g, θ_k⟩, ‖θ_k‖² and ‖g‖² for all K in one reading: the scores of a Frank-Wolfe step. `sums`: float64 [2K+1]."""
    _check("inner_products", {"g": g, **_numbered(models)})
    k = len(models)
    sums = _accumulator(sums, (2 * k + 1,), g)
    dispatch.choose("inner_products", g.device.type, backend)(_flat(g), _flat_all(models), sums)
    return InnerProducts(sums[:k], sums[k : 2 * k], sums[2 * k])


def gather(theta: Tensor, expert: Expert, *, out: Tensor | None = None, backend: str | None = None) -> Tensor:
    """What theta has at an expert's elements, to the bit: [k], theta's dtype. The expert's values play no part."""
    out = theta.new_empty(expert.offsets.shape) if out is None else out
    _check("gather", {"theta": theta})
    _check_elements(theta, expert.counts, expert.offsets)
    _check_buffer("out", out, tuple(expert.offsets.shape), theta.dtype, theta.device)
    kernel = dispatch.choose("gather", theta.device.type, backend)
    with _Flat(out) as flat:
        _need_elements(theta, kernel(_flat(theta), _flat(expert.counts), _flat(expert.offsets), flat))
    return out


def scatter(theta: Tensor, experts: Sequence[Expert], *, backend: str | None = None) -> Tensor:
    """Write experts' values in the place of theta's, to the bit, one expert after the other: the last one's stays.

    values have theta's dtype. theta is changed in place and returned; where an expert does not fit it, InputError is
    raised and nothing changed.
    """
    _check("scatter", {"theta": theta})
    for expert in experts:
        _check_elements(theta, expert.counts, expert.offsets)
        _check_buffer("values", expert.values, tuple(expert.offsets.shape), theta.dtype, theta.device)
    kernel = dispatch.choose("scatter", theta.device.type, backend)
    with _Flat(theta) as flat:
        fit = kernel(flat, [(_flat(e.counts), _flat(e.offsets), _flat(e.values)) for e in experts])
        _need_elements(theta, fit)
    return theta


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


def _empty(like: Tensor, dtype: torch.dtype | None) -> Tensor:
    return like.new_empty(like.shape, dtype=dtype or like.dtype)


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


def _check_elements(theta: Tensor, counts: Tensor, offsets: Tensor) -> None:
    import torch

    _check_buffer("counts", counts, (-(-theta.numel() // BLOCK),), torch.int32, theta.device)
    _check_buffer("offsets", offsets, (offsets.numel(),), torch.uint16, theta.device)


def _need_elements(theta: Tensor, fit: bool) -> None:
    if not fit:
        raise InputError(f"counts and offsets describe no elements of a tensor of shape {list(theta.shape)}")


def _check_buffer(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device != device:
        raise InputError(
            f"{name} must be {dtype} {list(shape)} on {device}, "
            f"it is {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
        )
