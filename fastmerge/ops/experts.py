"""FREE-Merging's experts: a task vector's largest elements, taken out and put in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .. import dispatch
from ..arrays import takes_arrays
from ..errors import InputError
from ..forms import explained
from ._arguments import _check, _check_buffer, _Flat, _flat, _flat_all, _numbered, working_dtype
from .memory import widened
from .records import BLOCK
from .results import Cut, Expert
from .selection import _check_ranks, kth_magnitude

if TYPE_CHECKING:
    import torch
    from torch import Tensor


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

    Values have `dtype`, or base's (Zheng & Wang 2025, Section 5.3). NaN are never among them, and may make them fewer.
    """
    if (k is None) == (cut is None):
        raise InputError("extract_topk: either k or a cut says how much to extract")
    _check("extract_topk", {"base": base, "model": model})
    _check("extract_topk", {"the expert's values": base.new_empty(0, dtype=dtype or base.dtype)})
    if k is not None:
        ((cut,),) = kth_magnitude(base, [model], [[k]], backend=backend)
    assert cut is not None
    return _above(base, model, cut, k or 0, dtype or base.dtype, backend)


def _above(base: Tensor, model: Tensor, cut: Cut, room: int, dtype: torch.dtype, backend: str | None) -> Expert:
    """The elements of a task vector above a cut, of which there are `room`, unless it takes a second reading."""
    import torch

    kernel = dispatch.choose("extract_topk", base.device, backend)
    flat_base, flat_model = _flat(base), _flat(model)
    counts = base.new_empty(-(-base.numel() // BLOCK), dtype=torch.int32)

    def extract(room: int) -> tuple[int, Tensor, Tensor]:
        offsets, values = base.new_empty(room, dtype=torch.uint16), base.new_empty(room, dtype=dtype)
        return kernel(flat_base, flat_model, *cut, counts, offsets, values), offsets, values

    found, offsets, values = extract(room)
    if found > room:
        found, offsets, values = extract(found)
    return Expert(counts, offsets[:found], values[:found])


def extraction_room(k: int, n: int) -> int:
    """How many elements extract_largest has room for while it looks for the k largest of n."""
    return min(n, 2 * k + BLOCK)


@takes_arrays()
def extract_largest(
    base: Tensor, models: Sequence[Tensor], ks: Sequence[int], *, backend: str | None = None
) -> list[Expert]:
    """extract_topk of ks[k] elements of every model, in the working type: in one reading, where there is a kernel.

    There may be fewer than that where there are NaN, which are never among them; how many may depend on the backend.
    Where a model alone is float64, base is widened, which takes memory for it.
    """
    import torch

    if len(ks) != len(models):
        raise InputError(f"extract_largest: {len(models)} models need as many ks, there are {len(ks)}")
    _check("extract_largest", {"base": base, **_numbered(models)})
    wide, n = working_dtype([base, *models]), base.numel()
    _check_ranks([[k] for k in ks], len(models), n)
    base = widened(base, models)  # or models of fewer bits would have task vectors of another type than their cuts
    found: list[Expert | None] = [None for _ in ks]
    device = base.device.type
    if backend in (None, "native") and dispatch.why_not("extract_largest", "native", device) is None:
        rooms = [extraction_room(k, n) for k in ks]
        experts = [
            Expert(
                base.new_empty(-(-n // BLOCK), dtype=torch.int32),
                base.new_empty(room, dtype=torch.uint16),
                base.new_empty(room, dtype=wide),
            )
            for room in rooms
        ]
        kernel = dispatch.choose("extract_largest", device, "native")
        done = kernel(_flat(base), _flat_all(models), list(ks), experts)
        found = [
            Expert(own.counts, own.offsets[:k], own.values[:k]) if ok else None
            for own, k, ok in zip(experts, ks, done, strict=True)
        ]
    left = [k for k, own in enumerate(found) if own is None]
    cuts = kth_magnitude(base, [models[k] for k in left], [[ks[k]] for k in left], backend=backend) if left else []
    for k, (cut,) in zip(left, cuts, strict=True):
        found[k] = _above(base, models[k], cut, ks[k], wide, backend)
    return [own for own in found if own is not None]


@takes_arrays("theta")
def scatter_add(theta: Tensor, expert: Expert, scale: float = 1.0, *, backend: str | None = None) -> None:
    """theta += scale · expert, in place and only where the expert has elements, each sum rounded once."""
    _check("scatter_add", {"theta": theta})
    _check("scatter_add", {"the expert's values": expert.values})
    _check_expert(theta, expert, expert.values.dtype)
    kernel = dispatch.choose("scatter_add", theta.device, backend)
    with _Flat(theta) as flat:
        _need_elements("scatter_add", theta, [expert], kernel(flat, *map(_flat, expert), float(scale)))


@takes_arrays()
def gather(theta: Tensor, expert: Expert, *, out: Tensor | None = None, backend: str | None = None) -> Tensor:
    """What theta has at an expert's elements, to the bit: [k], theta's dtype. The expert's values play no part."""
    out = theta.new_empty(expert.offsets.shape) if out is None else out
    _check("gather", {"theta": theta})
    _check_expert(theta, expert._replace(values=out), theta.dtype)
    kernel = dispatch.choose("gather", theta.device, backend)
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
    kernel = dispatch.choose("scatter", theta.device, backend)
    with _Flat(theta) as flat:
        _need_elements("scatter", theta, experts, kernel(flat, [tuple(map(_flat, expert)) for expert in experts]))


@explained
def scattering(jobs: Sequence[tuple[Tensor, Sequence[Expert]]], *, backend: str | None = None) -> Callable[[], None]:
    """scatter of many tensors, made ready: what is returned does them all, as often as it is called.

    jobs: a contiguous theta and its experts, all on the CPU or all on GPUs. There a call is a launch an expert, on the
    current stream; it neither allocates nor waits, so that a CUDA graph may capture it.
    """
    import torch

    for theta, experts in jobs:
        _check("scattering", {"theta": theta})
        if not theta.is_contiguous():
            raise InputError(f"scattering: theta {list(theta.shape)} must be contiguous")
        for expert in experts:
            _check_expert(theta, expert, theta.dtype)
    flat = [(_flat(theta), [tuple(map(_flat, expert)) for expert in experts]) for theta, experts in jobs]
    devices = {theta.device for theta, _ in jobs} or {torch.device("cpu")}
    if backend in (None, "cuda") and not any(dispatch.why_not("scattering", "cuda", device) for device in devices):
        run: Callable[[], None] | None = dispatch.choose("scattering", devices.pop(), "cuda")(flat)
        if run is None:
            raise InputError("scattering: an expert's counts and offsets are not those of elements of its tensor")
        return run

    def each() -> None:
        for theta, experts in jobs:
            scatter(theta, experts, backend=backend)

    return each


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
