"""EMR-Merging's ops, and packed masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .. import dispatch
from ..arrays import takes_arrays
from ..errors import InputError
from ..forms import explained
from ._arguments import _accumulator, _check, _check_buffer, _empty, _Flat, _flat, _flat_all, _numbered
from .records import packed_bytes
from .results import Elected, Masked

if TYPE_CHECKING:
    import torch
    from torch import Tensor


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

    tensors = {"base": base, **_numbered(models)}
    shape = (len(models), packed_bytes(base.numel()))
    unified, masks = out or (_empty(base, dtype), base.new_empty(shape, dtype=torch.uint8))
    _check("elect", tensors, unified=unified)
    _check_buffer("masks", masks, shape, torch.uint8, base.device)
    sums = _accumulator(sums, (2, len(models)), base)
    kernel = dispatch.choose("elect", base.device, backend)
    with _Flat(unified) as flat_unified, _Flat(masks, shape) as flat_masks:
        kernel(_flat(base), _flat_all(models), flat_unified, flat_masks, sums)
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
    _check("modulate", {"base": base, "unified": unified}, out=out)
    _check_buffer("mask", mask, (packed_bytes(base.numel()),), torch.uint8, base.device)
    kernel = dispatch.choose("modulate", base.device, backend)
    with _Flat(out) as flat:
        kernel(_flat(base), _flat(unified), _flat(mask), float(scale), flat)
    return out


@explained
def modulation(
    jobs: Sequence[tuple[Tensor, Tensor, Tensor, float, Tensor]], *, backend: str | None = None
) -> Callable[[], None]:
    """modulate of many tensors, made ready: what is returned does them all, as often as it is called.

    jobs: base, unified, mask, scale and a contiguous out, all on the CPU or all on GPUs. There a call is one launch for
    all of equal dtypes, on the current stream; it neither allocates nor waits, so that a CUDA graph may capture it.
    """
    import torch

    for base, unified, mask, _, out in jobs:
        _check("modulation", {"base": base, "unified": unified}, out=out)
        _check_buffer("mask", mask, (packed_bytes(base.numel()),), torch.uint8, base.device)
        if not out.is_contiguous():
            raise InputError(f"modulation: out {list(out.shape)} must be contiguous")
    flat = [(*map(_flat, (base, unified, mask)), float(scale), _flat(out)) for base, unified, mask, scale, out in jobs]
    devices = {base.device for base, *_ in jobs} or {torch.device("cpu")}
    if backend in (None, "cuda") and not any(dispatch.why_not("modulation", "cuda", device) for device in devices):
        return dispatch.choose("modulation", devices.pop(), "cuda")(flat)  # type: ignore[no-any-return]
    kernels = [dispatch.choose("modulate", base.device, backend) for base, *_ in jobs]

    def run() -> None:
        for kernel, job in zip(kernels, flat, strict=True):
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
    kernel = dispatch.choose("mask_against", base.device, backend)
    with _Flat(masks, shape) as flat:
        kernel(
            _flat(base), _flat_all(models), _flat(merged), None if tall is None else list(map(float, tall)), flat, sums
        )
    return Masked(masks, sums[0], sums[1])


@takes_arrays()
def pack_bits(mask: Tensor, *, out: Tensor | None = None, backend: str | None = None) -> Tensor:
    """A bool tensor of N elements as uint8 [ceil(N/8)]: bit i of byte j is element 8j + i, padded with zeros."""
    import torch

    shape = (packed_bytes(mask.numel()),)
    _check_buffer("mask", mask, tuple(mask.shape), torch.bool, mask.device)
    out = mask.new_empty(shape, dtype=torch.uint8) if out is None else out
    _check_buffer("out", out, shape, torch.uint8, mask.device)
    kernel = dispatch.choose("pack_bits", mask.device, backend)
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
    kernel = dispatch.choose("unpack_bits", packed.device, backend)
    with _Flat(out) as flat:
        kernel(_flat(packed), flat)
    return out
