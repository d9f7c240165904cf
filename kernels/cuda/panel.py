"""What FR-Merging's filter launches beside its transforms: a panel of columns, and the last sweep.

A panel has the planned columns of a matrix's spectrum as rows, which are transformed, multiplied by what is kept of
them, and transformed back; those of several matrices of one shape follow each other.

A real row of even length is, where it lies, half as many complex numbers, and transformed as such. With Z for what
comes of it, M = w / 2 and H[k] = (1 + i · exp(i · π · k / M)) / 2, the planned columns are, of the row's own spectrum,
X[k] = conj(H[k]) · Z[k] + conj((1 − H[k]) · Z[M − k]). Back, Z[k] = 2(H[k] · X[k] + conj((1 − H[M − k]) · X[M − k])).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.spectrum import Bins, plan
from .enqueue import enqueue
from .launch import Counts, Launch, Row, alike, counted
from .numeric import is_finite, load, number, place, pointer, store
from .settings import settings

LINE = tl.constexpr(16)  # complex numbers: a panel's rows begin at multiples of it, which are whole lines of the cache
SIDE, WARPS = 32, 8  # of tiles that are transposed: both ways a warp moves as many complex numbers that lie together
SHAPES = 256  # of which it is remembered what is kept

planned = functools.lru_cache(maxsize=SHAPES)(plan)


@triton.jit
def _complex(numbers, places, here):
    """Real and imaginary parts of complex numbers, zeros where none are asked for."""
    if numbers.dtype.element_ty == tl.float32:  # as words of 64 bits: Triton sees that neighbours lie together
        words = tl.load(numbers.to(tl.pointer_type(tl.int64)) + places, mask=here, other=0)
        real, imaginary = words.to(tl.int32), (words >> 32).to(tl.int32)
        return real.to(tl.float32, bitcast=True), imaginary.to(tl.float32, bitcast=True)
    real = tl.load(numbers + 2 * places, mask=here, other=0.0)
    return real, tl.load(numbers + 2 * places + 1, mask=here, other=0.0)


@triton.jit
def _matrix(numbers, rows, length):
    """The complex numbers of this program's matrix, [rows, length]."""
    return numbers + tl.program_id(1).to(tl.int64) * rows * length * 2


@triton.jit(do_not_specialize=["rows", "length", "first", "columns", "row", "pitch"])
def pack(
    spectrum, halves, panel, rows, length, first, columns, row, pitch, HALVED: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """The planned columns of a block's spectra [rows, length] to a panel [columns, pitch], from its column `row` on;
    a matrix for each program of the second axis.

    HALVED: the spectra are of complex numbers that pairs of real ones were taken for.
    """
    spectrum, panel = _matrix(spectrum, rows, length), _matrix(panel, columns, pitch)
    across = tl.cdiv(columns, SIDE)
    y = (tl.program_id(0) // across).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    column = tl.program_id(0) % across * SIDE + tl.arange(0, SIDE)
    here = (y < rows)[:, None] & (column < columns)[None, :]
    x, lines = first + column, y[:, None] * length
    re, im = _complex(spectrum, lines + tl.where(x < length, x, 0)[None, :], here)
    if HALVED:
        other_re, other_im = _complex(spectrum, lines + tl.where(x > 0, length - x, 0)[None, :], here)
        half_re, half_im = _complex(halves, column, column < columns)
        half_re, half_im = half_re[None, :], half_im[None, :]
        apart, sum = re - other_re, im + other_im
        re = half_re * apart + half_im * sum + other_re
        im = half_re * sum - half_im * apart - other_im
    numbers = tl.interleave(tl.trans(re), tl.trans(im))
    column = tl.program_id(0) % across * SIDE + tl.arange(0, SIDE)
    top = (tl.program_id(0) // across).to(tl.int64) * SIDE
    places = 2 * top + tl.arange(0, 2 * SIDE)
    here = (column < columns)[:, None] & (places < 2 * rows)[None, :]
    tl.store(panel + (column.to(tl.int64) * pitch + row)[:, None] * 2 + places[None, :], numbers, mask=here)


@triton.jit
def _planned(panel, halves, column, columns, y, rows, pitch, HALVED: tl.constexpr):
    """Parts of the panel's numbers, [SIDE, SIDE] by columns, and of their halves; zeros where no column is planned."""
    planned = (column >= 0) & (column < columns)
    places = column.to(tl.int64)[:, None] * pitch + y[None, :]
    re, im = _complex(panel, places, planned[:, None] & (y < rows)[None, :])
    if HALVED:
        half_re, half_im = _complex(halves, column, planned)
    else:
        half_re, half_im = column, column
    return re, im, half_re[:, None], half_im[:, None]


@triton.jit(do_not_specialize=["rows", "length", "first", "columns", "row", "pitch"])
def unpack(
    panel, halves, spectrum, rows, length, first, columns, row, pitch, HALVED: tl.constexpr, WHOLE: tl.constexpr,
    SIDE: tl.constexpr,
):  # fmt: skip
    """As pack, back: all of a block's spectra [rows, length], zeros where nothing is planned.

    WHOLE: each of their rows begins at a multiple of 16 bytes.
    """
    spectrum, panel = _matrix(spectrum, rows, length), _matrix(panel, columns, pitch)
    across = tl.cdiv(length, SIDE)
    top = (tl.program_id(0) // across).to(tl.int64) * SIDE
    left = tl.program_id(0) % across * SIDE
    stride = length.to(tl.int64) * 2
    if WHOLE:
        stride = tl.multiple_of(stride, 4)
    y, places = top + tl.arange(0, SIDE), 2 * left + tl.arange(0, 2 * SIDE)
    targets = spectrum + (y * stride)[:, None] + places[None, :]
    nothing = (left + SIDE <= first) | (left >= first + columns)
    if HALVED:
        nothing = nothing & ((left + SIDE <= length - first - columns + 1) | (left > length - first))
    if nothing & (top + SIDE <= rows) & (left + SIDE <= length):
        tl.store(targets, tl.zeros([SIDE, 2 * SIDE], spectrum.dtype.element_ty))
    else:
        x = left + tl.arange(0, SIDE)
        re, im, half_re, half_im = _planned(panel + 2 * row, halves, x - first, columns, y, rows, pitch, HALVED)
        if HALVED:
            others = _planned(panel + 2 * row, halves, length - x - first, columns, y, rows, pitch, True)
            other_re, other_im, other_half_re, other_half_im = others
            real = (half_re * re - half_im * im) + ((1 - other_half_re) * other_re + other_half_im * other_im)
            im = (half_re * im + half_im * re) + (other_half_im * other_re - (1 - other_half_re) * other_im)
            re = real
        here = (y < rows)[:, None] & (places < 2 * length)[None, :]
        tl.store(targets, tl.interleave(tl.trans(re), tl.trans(im)), mask=here)


@triton.jit
def _keep(
    column, start, reach, mirrored, unit, h, middle, SUBTRACT: tl.constexpr, FULL: tl.constexpr, TILE: tl.constexpr,
    WORKING: tl.constexpr,
):  # fmt: skip
    places = start + tl.arange(0, TILE)
    y = places // 2
    kept = (tl.abs(2 * y - middle) <= reach).to(WORKING)
    kept += (tl.abs(2 * tl.where(y > 0, h - y, 0) - middle) <= mirrored).to(WORKING)
    if SUBTRACT:
        kept -= 2
    store(column, places, load(column, places, 2 * h, FULL, WORKING) * (kept * unit), 2 * h, FULL)


@triton.jit(do_not_specialize=["columns", "h", "middle"])
def keep_tile(
    panel, reaches, unit, columns, h, middle, SUBTRACT: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """Multiply the columns of a matrix, which a panel has as rows of complex numbers, by what is kept of them; a matrix
    for each program of the second axis.

    reaches: of each column and of its mirror image; unit: half of what a bin that is kept is multiplied by.
    """
    tiles = tl.cdiv(2 * h, TILE)
    x, start = tl.program_id(0) // tiles, tl.program_id(0) % tiles * TILE
    column = panel + (tl.program_id(1).to(tl.int64) * columns + x) * tl.cdiv(h, LINE) * (2 * LINE)
    reach, mirrored, unit = tl.load(reaches + x), tl.load(reaches + columns + x), tl.load(unit)
    if start + TILE <= 2 * h:
        _keep(column, start, reach, mirrored, unit, h, middle, SUBTRACT, True, TILE, WORKING)
    else:
        _keep(column, start, reach, mirrored, unit, h, middle, SUBTRACT, False, TILE, WORKING)


@triton.jit
def _finish(
    row, start, n, PARTS: tl.constexpr, SCALED: tl.constexpr, BASE: tl.constexpr, OUT: tl.constexpr,
    ALIGNED: tl.constexpr, FULL: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    offsets = start + tl.arange(0, TILE)
    if PARTS == "filtered":
        d = load(pointer(row + 5, WORKING, ALIGNED), offsets, n, FULL, WORKING)
    else:
        d = load(pointer(row + 4, WORKING, ALIGNED), offsets, n, FULL, WORKING)
        if PARTS == "both":
            d = d + load(pointer(row + 5, WORKING, ALIGNED), offsets, n, FULL, WORKING)
    if SCALED:
        d = number(row + 6, WORKING) * d
    if BASE is not None:
        d = load(pointer(row + 3, BASE, ALIGNED), offsets, n, FULL, WORKING) + d
    store(pointer(row + 7, OUT, ALIGNED), offsets, d, n, FULL)
    nonfinite = is_finite(d, OUT) == 0
    if not FULL:
        nonfinite = nonfinite & (offsets < n)
    found = tl.sum(nonfinite.to(tl.int32), 0).to(tl.int64)
    tl.atomic_add(row + 2, found, mask=found > 0)


@triton.jit(do_not_specialize=["width"])
def finish_tile(
    table, owners, width, PARTS: tl.constexpr, SCALED: tl.constexpr, BASE: tl.constexpr, OUT: tl.constexpr,
    ALIGNED: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr, WORKING: tl.constexpr,
):  # fmt: skip
    """out = base + scale · d, d being v, what comes back filtered, or the sum of both.

    Row: the count of non-finite elements, in place of the address of sums, base, v, filtered, scale, out.
    """
    row, start, n = place(table, owners, width, SINGLE, TILE)
    if start + TILE <= n:
        _finish(row, start, n, PARTS, SCALED, BASE, OUT, ALIGNED, True, TILE, WORKING)
    elif start < n:
        _finish(row, start, n, PARTS, SCALED, BASE, OUT, ALIGNED, False, TILE, WORKING)


def new_panel(bins: Bins, like: Tensor, matrices: int) -> Tensor:
    """Memory for the planned columns of matrices of real numbers like those."""
    pitch = -(-bins.h // LINE.value) * LINE.value
    return like.new_empty(matrices * planned(bins).columns, pitch, dtype=like.dtype.to_complex())


def transpose(spectrum: Tensor, panel: Tensor, row: int, bins: Bins, back: bool = False) -> None:
    """The planned columns of a block's spectra to the panel, for rows `row` on; or back, others becoming 0. Spectra are
    those of as many matrices as the panel is of."""
    own, length, halved = planned(bins), spectrum.shape[1], bins.w % 2 == 0
    matrices = len(panel) // own.columns
    rows = len(spectrum) // matrices
    numbers, columns = spectrum.view(spectrum.dtype.to_real()), panel.view(panel.dtype.to_real())
    _, _, halves = _tables(bins, numbers.dtype, numbers.device)
    sizes = rows, length, own.first, own.columns, row, panel.shape[1]
    grid = -(-rows // SIDE) * -(-(length if back else own.columns) // SIDE), matrices, 1
    options = {"HALVED": halved, "SIDE": SIDE, "num_warps": WARPS}
    if back:
        whole = length * spectrum.element_size() % 16 == 0
        enqueue(unpack, grid, columns, halves, numbers, *sizes, WHOLE=whole, **options)
    else:
        enqueue(pack, grid, numbers, halves, columns, *sizes, **options)


def keep(panel: Tensor, bins: Bins) -> None:
    """Multiply the planned columns by their factors."""
    own, numbers = planned(bins), panel.view(panel.dtype.to_real())
    reaches, unit, _ = _tables(bins, numbers.dtype, numbers.device)
    chosen = settings(numbers.element_size())
    enqueue(
        keep_tile,
        (-(-2 * bins.h // chosen.tile) * own.columns, len(panel) // own.columns, 1),
        numbers,
        reaches,
        unit,
        own.columns,
        bins.h,
        bins.middle,
        SUBTRACT=own.subtract,
        TILE=chosen.tile,
        WORKING=numbers.dtype,
        num_warps=chosen.warps,
    )


@functools.lru_cache(maxsize=SHAPES)
def _tables(bins: Bins, real: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """How far the planned columns and their mirror images are kept, [2, columns]; half the factor of a bin that is;
    and H of those columns, [columns, 2]."""
    own = planned(bins)
    columns = range(own.first, own.first + own.columns)
    reaches = [[bins.reach(sign * x) for x in columns] for sign in (1, -1)]
    unit = 0.5 / (bins.h * bins.w) * (1 if bins.w % 2 else 2)
    angles = torch.arange(columns.start, columns.stop, dtype=torch.float64) * (2 * math.pi / bins.w)
    halves = torch.stack([0.5 - angles.sin() / 2, angles.cos() / 2], 1)
    return (
        torch.tensor(reaches, device=device),
        torch.tensor([unit], dtype=real, device=device),
        halves.to(device, real),
    )


def finish_many(jobs: Sequence[tuple[Tensor | None, Tensor | None, Tensor | None, float, Tensor]]) -> Counts:
    """out = base + scale · (v + filtered) of each job, of what is given of them. Returns what waits for the numbers of
    elements that are not finite."""
    launches = []
    for group in alike(jobs, lambda base, v, filtered, _, out: (out, base, v, filtered), _options):
        rows = [Row(jobs[i][-1].numel(), jobs[i]) for i in group.jobs]
        launch, options = Launch("highpass_merge", rows, group.tensors), dict(group.options)
        launch(finish_tile, OUT=group.tensors[0].dtype, WORKING=group.tensors[-1].dtype, **options)
        launches.append((group.jobs, launch.counts.tolist))
    return counted(launches, len(jobs))


def _options(
    base: Tensor | None, v: Tensor | None, filtered: Tensor | None, scale: float, _: Tensor
) -> tuple[tuple[str, object], ...]:
    """What the last sweep is compiled for, beside alignment and what it writes."""
    parts = "filtered" if v is None else "v" if filtered is None else "both"
    return ("PARTS", parts), ("SCALED", scale != 1), ("BASE", base if base is None else base.dtype)
