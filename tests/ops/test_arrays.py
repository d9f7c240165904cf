"""NumPy arrays and DLPack in the place of tensors: the same results, no copies, nothing read-only written."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensors import BF16, F32, make
from torch import Tensor

from fastmerge import ops
from fastmerge.errors import InputError


class Elsewhere:
    """An array of another framework, of which only DLPack is known."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()


def tensors(dtype: torch.dtype = F32) -> tuple[Tensor, list[Tensor]]:
    base, *models = (make(5 * 14, dtype, seed, special=False).view(5, 14) for seed in range(4))
    return base, models


T_BASE, T_MODELS = tensors()
BASE, MODELS = T_BASE.numpy(), [m.numpy() for m in T_MODELS]
BITS = ops.pack_bits(T_BASE > 0)
EXPERT = ops.extract_topk(T_BASE, T_MODELS[0], 9)
LIMITS = torch.arange(14) << 28

# What each function is called with; arrays stand in the place of these tensors.
CALLS: dict[str, tuple[Any, ...]] = {
    "elect": (T_BASE, T_MODELS),
    "modulate": (T_BASE, T_MODELS[0], BITS, 1.2),
    "mask_against": (T_BASE, T_MODELS, T_MODELS[1]),
    "combine": (T_BASE, T_MODELS, [0.1, 0.2, 0.3]),
    "blend": (T_BASE, T_MODELS, torch.ones(3, 5)),
    "low_rank": (T_BASE, T_BASE[:, :2], T_MODELS[0][:2]),
    "kept_sums": (T_BASE, T_MODELS, ops.Kept(keep=torch.stack([BITS] * 3))),
    "geodesic": (T_BASE, T_MODELS[0], 0.3),
    "delta_sum": (T_BASE, T_MODELS),
    "highpass": (T_BASE,),
    "highpass_merge": (T_BASE, T_MODELS),
    "moments": (T_BASE, T_MODELS),
    "inner_products": (T_BASE, T_MODELS),
    "gram": (T_BASE, T_MODELS),
    "row_gram": (T_BASE, T_MODELS, 14),
    "row_divergence": (T_BASE, T_MODELS[0], 14),
    "variance": (T_BASE, T_MODELS),
    "compete": (T_BASE, T_MODELS, 1),
    "balance": (T_BASE, T_MODELS, [ops.Bounds(0.1, 2.0, 0.5, 3.0)] * 3),
    "magnitude_histogram": (T_BASE, T_MODELS),
    "kth_magnitude": (T_BASE, T_MODELS, [[1, 9]] * 3),
    "rank_drop": (T_BASE, T_MODELS, 14, [1, 2, 3], [LIMITS] * 3),
    "extract_topk": (T_BASE, T_MODELS[0], 9),
    "scatter_add": (T_BASE, EXPERT, 0.5),
    "gather": (T_BASE, EXPERT),
    "scatter": (T_BASE, [EXPERT]),
    "pack_bits": (T_BASE > 0,),
    "unpack_bits": (BITS, (5, 14)),
}
OPTIONS = {"blend": {"inner": 14}, "compete": {"least": 0.1, "most": 2.0}}


def called(name: str, args: Sequence[Any]) -> Any:
    return getattr(ops, name)(*args, **OPTIONS.get(name, {}))


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, (list, tuple)):
        parts = [mapped(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return change(value) if isinstance(value, Tensor) else value


def leaves(value: Any) -> list[Any]:
    return [leaf for part in value for leaf in leaves(part)] if isinstance(value, (list, tuple)) else [value]


def test_every_function_takes_arrays() -> None:
    """Whatever is public and has an op's name, or is called with tensors only."""
    assert set(CALLS) == {*ops.OPS, "geodesic"}
    for name in CALLS:
        assert hasattr(getattr(ops, name), "__wrapped__"), f"{name} lacks @takes_arrays()"


@pytest.mark.parametrize("name", CALLS)
def test_numpy_in_numpy_out(name: str) -> None:
    """The same numbers, as arrays, of contiguous and of strided and read-only ones; and what is changed in place is."""
    args = mapped(CALLS[name], Tensor.clone)
    expected = leaves((called(name, args), args[0]))
    for change in (lambda t: t.clone().numpy(), unusual):
        arrays = mapped(CALLS[name], change)
        if name.startswith("scatter"):
            arrays = (CALLS[name][0].clone().numpy(), *arrays[1:])
        found = leaves((called(name, arrays), arrays[0]))
        for a, b in zip(found, expected, strict=True):
            assert isinstance(a, np.ndarray) == isinstance(b, Tensor)
            assert np.array_equal(a, b.numpy() if isinstance(b, Tensor) else b)


def unusual(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The same values in reverse memory order, or read-only."""
    array = np.flip(np.flip(tensor.numpy()).copy())
    if tensor.ndim > 1:
        array = tensor.numpy().copy()
        array.flags.writeable = False
    return array


@pytest.mark.parametrize("name", CALLS)
def test_dlpack_in_tensors_out(name: str) -> None:
    args = mapped(CALLS[name], Tensor.clone)
    expected = leaves(called(name, args))
    found = leaves(called(name, mapped(CALLS[name], lambda t: Elsewhere(t.clone()))))
    for a, b in zip(found, expected, strict=True):
        assert type(a) is type(b)
        assert a.equal(b) if isinstance(b, Tensor) else a == b


def test_results_are_numpy_if_all_arrays_are() -> None:
    assert isinstance(ops.combine(BASE, MODELS).merged, np.ndarray)
    assert isinstance(ops.combine(BASE, [MODELS[0], T_MODELS[1]]).merged, Tensor)
    assert isinstance(ops.combine(T_BASE, T_MODELS, np.array([0.1, 0.2, 0.3])).merged, Tensor)
    stacked = ops.combine(BASE, np.stack(MODELS), np.array([0.1, 0.2, 0.3])).merged
    assert np.array_equal(stacked, ops.combine(T_BASE, T_MODELS, [0.1, 0.2, 0.3]).merged.numpy())


def test_writes_into_the_array_given() -> None:
    out, sums = np.empty((14, 5), np.float32).T, np.zeros((2, 3))
    merged = ops.combine(BASE, MODELS, out=out).merged
    assert merged is out
    assert np.array_equal(out, ops.combine(T_BASE, T_MODELS).merged.numpy())
    masks = np.empty((3, 9), np.uint8)
    elected = ops.elect(BASE, MODELS, out=(out, masks), sums=sums)
    assert elected.unified is out
    assert elected.masks is masks
    assert np.array_equal(sums[0], elected.magnitude)


def test_memory_maps_are_read_in_place(tmp_path: Path) -> None:
    """An array over a read-only file is neither copied nor written."""
    BASE.tofile(tmp_path / "weights")
    mapped = np.memmap(tmp_path / "weights", np.float32, "r", shape=BASE.shape)
    from fastmerge.arrays import _tensor

    assert _tensor("base", mapped, written=False).data_ptr() == mapped.ctypes.data
    for name in ("out", "theta"):
        with pytest.raises(InputError, match=f"{name} is read-only"):
            ops.combine(BASE, MODELS, out=mapped) if name == "out" else ops.scatter_add(mapped, EXPERT)


def test_what_arrays_cannot_be() -> None:
    for array, expected in (
        (np.array(["a"]), "base is an array of <U1"),
        (np.zeros(3, np.int32), "base is torch.int32"),
    ):
        with pytest.raises(InputError, match=expected):
            ops.moments(array, [array])
    swapped = BASE.astype(">f4")
    assert np.array_equal(ops.combine(swapped, MODELS).merged, ops.combine(BASE, MODELS).merged)
    with pytest.raises(InputError, match="out is read-only, or of foreign byte order"):
        ops.combine(BASE, MODELS, out=swapped)
    with pytest.raises(InputError, match="NumPy has no bfloat16"):
        ops.combine(BASE, MODELS, dtype=BF16)


def test_signatures_stay() -> None:
    assert list(inspect.signature(ops.modulate).parameters)[:4] == ["base", "unified", "mask", "scale"]
