"""What the ops that select by magnitude share: keys of numbers, and launches of magnitude.cu's kernels."""

from __future__ import annotations

import ctypes
import struct

import torch
from torch import Tensor

from . import nvrtc
from .launch import BLOCK

SOURCE = "magnitude.cu"
DTYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2, torch.float64: 3}
HISTOGRAM_BLOCKS = 792  # of threads, at most: as many as an H100 runs at a time, six on each multiprocessor
HISTOGRAM_ELEMENTS = 16_384  # of one such block, at least

Selection = tuple[int, int, int]  # keys above the first and up to the second; of those equal to the first, index below


def is_wide(base: Tensor, model: Tensor) -> bool:
    """Whether keys are those of float64."""
    return torch.float64 in (base.dtype, model.dtype)


def key_of(magnitude: float, wide: bool) -> int:
    """The key of a magnitude, rounded to float32 unless wide; −1, which all are above, of a negative one."""
    if magnitude < 0:
        return -1
    if magnitude != magnitude:
        return nan_key(wide)
    if wide:
        return int.from_bytes(struct.pack("<d", magnitude), "little")
    return int.from_bytes(struct.pack("<f", ctypes.c_float(magnitude).value), "little")


def magnitude_of(key: int, wide: bool) -> float:
    """The magnitude that has this key."""
    (magnitude,) = (
        struct.unpack("<d", key.to_bytes(8, "little")) if wide else struct.unpack("<f", key.to_bytes(4, "little"))
    )
    return float(magnitude)


def nan_key(wide: bool) -> int:
    return 0x7FF8 << 48 if wide else 0x7FC0 << 16


def infinity_key(wide: bool) -> int:
    return 0x7FF0 << 48 if wide else 0x7F80 << 16


def above(magnitude: float, index: int, wide: bool) -> Selection:
    """The elements above a cut, of which NaN are none."""
    return key_of(magnitude, wide), infinity_key(wide), index


def equal_to(key: int, n: int) -> Selection:
    """The elements that have this key."""
    return key, -1, n


def histogram(
    base: Tensor, model: Tensor, shift: int, bits: int, prefix: int | None, wide: bool, counts: Tensor
) -> None:
    """counts (int64 [2^bits]) += the histogram of magnitude_histogram."""
    n = model.numel()
    if n == 0:
        return
    kernel = "histogram_wide" if wide else "histogram"
    blocks = min(HISTOGRAM_BLOCKS, -(-n // HISTOGRAM_ELEMENTS))
    numbers = ctypes.c_int(shift), ctypes.c_int(bits), ctypes.c_longlong(-1 if prefix is None else prefix)
    _launch(kernel, blocks, base, model, *numbers, counts)


def count(base: Tensor, model: Tensor, selection: Selection) -> Tensor:
    """How many elements of each block are selected: int32 [ceil(N / BLOCK)]."""
    blocks = -(-model.numel() // BLOCK)
    counts = torch.zeros(blocks, dtype=torch.int32, device=model.device)
    if blocks:
        _launch("count_selected", blocks, base, model, *map(ctypes.c_longlong, selection), counts)
    return counts


def collect(base: Tensor, model: Tensor, selection: Selection, counts: Tensor, offsets: Tensor, values: Tensor) -> None:
    """Selected elements, in order, as many as there is room for: where they are in their blocks, and their τ.

    counts: `count` of the same; offsets: uint16; values: the working type.
    """
    starts = counts.cumsum(0, dtype=torch.int64) - counts
    if counts.numel() and offsets.numel():
        numbers = map(ctypes.c_longlong, selection)
        room = ctypes.c_longlong(offsets.numel())
        _launch("collect_selected", counts.numel(), base, model, *numbers, starts, room, offsets, values)


def _launch(kernel: str, blocks: int, base: Tensor, model: Tensor, *arguments: object) -> None:
    defines = {"BASE": DTYPES[base.dtype], "MODEL": DTYPES[model.dtype]}
    given = [base, model, ctypes.c_longlong(model.numel()), *arguments]
    nvrtc.launch(SOURCE, kernel, defines, blocks, given, model)
