"""The CPU backend: C++ kernels compiled for several instruction sets, the best of which is chosen when loaded.

FASTMERGE_ISA=base|v3|v4 chooses another (base: SSE2 or NEON), and so does `set_isa` while no op is at work;
FASTMERGE_THREADS is the number of threads (all cores by default).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

try:
    from . import _native
except ImportError as error:
    if list(Path(__file__).parent.glob("_native.*.so")):
        raise ImportError(f"the C++ extension does not load: {error}") from error
    raise ImportError("the C++ extension was not built; install fastmerge where a C++20 compiler is") from error

DTYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2, torch.float64: 3}
CONSENSUS = {"sum": 0, "max": 1, "weighted": 2, "unweighted": 3, "count": 4}

Window = tuple[float, int, float, int]
Drop = tuple[int, int]
Bounds = tuple[float, float, float, float]  # least, most, low, high
Kept = tuple[Sequence[Window] | None, Sequence[Drop] | None, Tensor | None]  # trim, drop, keep

guard = _native.guard
isa = _native.isa
Loader = _native.Loader
lost = _native.lost
set_isa = _native.set_isa
set_threads = _native.set_threads
threads = _native.threads
unguard = _native.unguard
Unloader = _native.Unloader
write_mapped = _native.write_mapped


def _models(models: Sequence[Tensor]) -> tuple[list[int], list[int]]:
    return [m.data_ptr() for m in models], [DTYPES[m.dtype] for m in models]


def _kept(kept: Kept) -> tuple[list[Window], list[Drop], int, int]:
    trim, drop, keep = kept
    address, stride = (0, 0) if keep is None else (keep.data_ptr(), keep.stride(0))
    return list(trim or ()), list(drop or ()), address, stride


def _base(base: Tensor | None) -> tuple[int, int]:
    return (0, 0) if base is None else (base.data_ptr(), DTYPES[base.dtype])


def elect(base: Tensor, models: Sequence[Tensor], unified: Tensor, masks: Tensor, sums: Tensor) -> None:
    _native.elect(
        base.numel(),
        base.data_ptr(),
        DTYPES[base.dtype],
        *_models(models),
        unified.data_ptr(),
        DTYPES[unified.dtype],
        masks.data_ptr(),
        sums.data_ptr(),
    )


def modulate(base: Tensor, unified: Tensor, mask: Tensor, scale: float, out: Tensor) -> None:
    _native.modulate(
        base.numel(),
        base.data_ptr(),
        DTYPES[base.dtype],
        unified.data_ptr(),
        DTYPES[unified.dtype],
        mask.data_ptr(),
        scale,
        out.data_ptr(),
        DTYPES[out.dtype],
    )


def low_rank(base: Tensor, up: Tensor, down: Tensor, scale: float, column: int, out: Tensor) -> None:
    _native.low_rank(
        base.numel(),
        base.data_ptr(),
        DTYPES[base.dtype],
        up.data_ptr(),
        down.data_ptr(),
        up.dtype == torch.float64,
        down.shape[0],
        down.shape[1],
        scale,
        column,
        out.data_ptr(),
        DTYPES[out.dtype],
    )


def mask_against(
    base: Tensor,
    models: Sequence[Tensor],
    merged: Tensor,
    tall: Sequence[float] | None,
    masks: Tensor,
    sums: Tensor,
) -> None:
    _native.mask_against(
        base.numel(),
        base.data_ptr(),
        DTYPES[base.dtype],
        *_models(models),
        merged.data_ptr(),
        DTYPES[merged.dtype],
        list(tall or ()),
        masks.data_ptr(),
        sums.data_ptr(),
    )


def combine(
    base: Tensor | None,
    models: Sequence[Tensor],
    weights: Sequence[float],
    divisor: float | Sequence[float],
    scale: float,
    consensus: str,
    as_delta: bool,
    kept: Kept,
    offset: int,
    out: Tensor,
) -> int:
    return _native.combine(
        out.numel(),
        *_base(base),
        *_models(models),
        list(weights),
        [] if isinstance(divisor, float) else list(divisor),
        divisor if isinstance(divisor, float) else 1.0,
        scale,
        CONSENSUS[consensus],
        as_delta,
        _kept(kept),
        offset,
        out.data_ptr(),
        DTYPES[out.dtype],
    )


def blend(base: Tensor | None, models: Sequence[Tensor], weights: Tensor, inner: int, offset: int, out: Tensor) -> int:
    return _native.blend(
        out.numel(),
        *_base(base),
        *_models(models),
        weights.data_ptr(),
        weights.shape[1],
        inner,
        offset,
        out.data_ptr(),
        DTYPES[out.dtype],
    )


def kept_sums(base: Tensor, models: Sequence[Tensor], kept: Kept, offset: int, sums: Tensor) -> None:
    _native.kept_sums(
        base.numel(),
        base.data_ptr(),
        DTYPES[base.dtype],
        *_models(models),
        _kept(kept),
        offset,
        sums.data_ptr(),
    )


def delta_sum(base: Tensor | None, models: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> None:
    _native.delta_sum(
        out.numel(),
        *_base(base),
        *_models(models),
        list(weights),
        out.data_ptr(),
        DTYPES[out.dtype],
    )


def moments(base: Tensor, models: Sequence[Tensor], sums: Tensor, nonfinite: Tensor) -> None:
    _native.moments(
        base.numel(), base.data_ptr(), DTYPES[base.dtype], *_models(models), sums.data_ptr(), nonfinite.data_ptr()
    )


def inner_products(g: Tensor, models: Sequence[Tensor], sums: Tensor) -> None:
    _native.inner_products(g.numel(), g.data_ptr(), DTYPES[g.dtype], *_models(models), sums.data_ptr())


def gram(base: Tensor | None, models: Sequence[Tensor], sums: Tensor) -> None:
    _native.gram(models[0].numel(), *_base(base), *_models(models), sums.data_ptr())


def row_gram(base: Tensor | None, models: Sequence[Tensor], columns: int, products: Tensor) -> None:
    _native.row_gram(models[0].numel(), *_base(base), *_models(models), columns, products.data_ptr())


def row_divergence(base: Tensor, model: Tensor, columns: int, added: float, divergences: Tensor) -> None:
    _native.row_divergence(
        base.numel(),
        base.data_ptr(),
        DTYPES[base.dtype],
        model.data_ptr(),
        DTYPES[model.dtype],
        columns,
        added,
        divergences.data_ptr(),
    )


def variance(base: Tensor, models: Sequence[Tensor], out: Tensor) -> int:
    return _native.variance(out.numel(), *_base(base), *_models(models), out.data_ptr(), DTYPES[out.dtype])


def compete(base: Tensor, models: Sequence[Tensor], own: int, least: float, most: float, out: Tensor) -> None:
    given = (*_base(base), *_models(models), own, least, most)
    _native.compete(out.numel(), *given, out.data_ptr(), DTYPES[out.dtype])


def balance(base: Tensor, models: Sequence[Tensor], bounds: Sequence[Bounds], scale: float, out: Tensor) -> int:
    given = (*_base(base), *_models(models), list(bounds), scale)
    return _native.balance(out.numel(), *given, out.data_ptr(), DTYPES[out.dtype])


def pack_bits(mask: Tensor, out: Tensor) -> None:
    _native.pack_bits(mask.numel(), mask.data_ptr(), out.data_ptr())


def unpack_bits(packed: Tensor, out: Tensor) -> None:
    _native.unpack_bits(out.numel(), packed.data_ptr(), out.data_ptr())


def magnitude_histogram(
    base: Tensor,
    models: Sequence[Tensor],
    shift: int,
    bits: int,
    prefixes: Sequence[int] | None,
    wide: bool,
    counts: Tensor,
) -> None:
    _native.magnitude_histogram(
        base.numel(),
        base.data_ptr(),
        DTYPES[base.dtype],
        *_models(models),
        shift,
        bits,
        list(prefixes or ()),
        wide,
        counts.data_ptr(),
    )


def kth_magnitude(
    base: Tensor,
    models: Sequence[Tensor],
    ranks: Sequence[Sequence[int]],
    magnitudes: Tensor,
    indices: Tensor,
) -> None:
    _native.kth_magnitude(
        base.numel(),
        base.data_ptr(),
        DTYPES[base.dtype],
        *_models(models),
        ranks,
        magnitudes.data_ptr(),
        indices.data_ptr(),
    )


def extract_topk(
    base: Tensor, model: Tensor, magnitude: float, index: int, counts: Tensor, offsets: Tensor, values: Tensor
) -> int:
    return _native.extract_topk(
        base.numel(),
        base.data_ptr(),
        DTYPES[base.dtype],
        model.data_ptr(),
        DTYPES[model.dtype],
        magnitude,
        index,
        counts.data_ptr(),
        offsets.data_ptr(),
        values.data_ptr(),
        DTYPES[values.dtype],
        offsets.numel(),
    )


def extract_largest(
    base: Tensor, models: Sequence[Tensor], ks: Sequence[int], rooms: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> list[int]:
    given = [
        (k, offsets.numel(), counts.data_ptr(), offsets.data_ptr(), values.data_ptr())
        for k, (counts, offsets, values) in zip(ks, rooms, strict=True)
    ]
    return _native.extract_largest(base.numel(), base.data_ptr(), DTYPES[base.dtype], *_models(models), given)


def scatter_add(theta: Tensor, counts: Tensor, offsets: Tensor, values: Tensor, scale: float) -> bool:
    expert = _expert(counts, offsets, values)
    dtypes = DTYPES[theta.dtype], DTYPES[values.dtype]
    return _native.scatter_add(theta.numel(), theta.data_ptr(), dtypes[0], expert, dtypes[1], scale)


def gather(theta: Tensor, counts: Tensor, offsets: Tensor, out: Tensor) -> bool:
    return _native.gather(theta.numel(), theta.data_ptr(), DTYPES[theta.dtype], _expert(counts, offsets, out))


def scatter(theta: Tensor, experts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> bool:
    return _native.scatter(theta.numel(), theta.data_ptr(), DTYPES[theta.dtype], [_expert(*e) for e in experts])


def _expert(counts: Tensor, offsets: Tensor, values: Tensor) -> tuple[int, int, int, int, int]:
    return counts.data_ptr(), counts.numel(), offsets.data_ptr(), offsets.numel(), values.data_ptr()


def rank_drop(
    base: Tensor,
    models: Sequence[Tensor],
    columns: int,
    keys: Sequence[int],
    thresholds: Sequence[Tensor],
    start: int,
    stop: int,
    masks: Tensor,
) -> None:
    _native.rank_drop(
        base.numel(),
        base.data_ptr(),
        DTYPES[base.dtype],
        *_models(models),
        columns,
        list(keys),
        [t.data_ptr() for t in thresholds],
        start,
        stop,
        masks.data_ptr(),
    )


from .highpass import highpass as highpass  # noqa: E402  these drive functions above
from .highpass_merge import Filtered as Filtered  # noqa: E402
from .highpass_merge import highpass_merge as highpass_merge  # noqa: E402
from .pages import pages as pages  # noqa: E402
