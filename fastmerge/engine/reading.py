"""Elements of a tensor, read from where it lies, or computed of what it is made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import ops
from ..formats.dtypes import TORCH_DTYPES
from ..formats.expanded import Expanded, LowRank, Rescaled, is_computed
from ..formats.gathered import Gathered
from ..formats.mapping import Inputs, Span
from ..formats.safetensors import DTYPES, TensorInfo

ROWS = 4096  # of a matrix that are added up at a time


def spans(info: TensorInfo, a: int, b: int) -> list[Span]:
    """The bytes that elements a to b need; what every part of a tensor needs is told for the first one alone."""
    if isinstance(info, Gathered):
        return gathered_spans(info, a, b)
    if not isinstance(info, Expanded):
        size = DTYPES[info.dtype]
        return [(info.file, info.start + a * size, info.start + b * size)]
    found = spans(info.base, a, b)
    change, columns = info.change, max(1, math.prod(info.shape[1:]))
    shared = list(change.parts)
    if isinstance(change, LowRank) and not change.transposed:
        up = shared.pop(0)
        width = up.nbytes // max(1, info.shape[0])
        found.append((up.file, up.start + a // columns * width, up.start + b // columns * width))
    return found + [(part.file, part.start, part.stop) for part in shared if a == 0]


def read(files: Inputs, info: TensorInfo, a: int, b: int) -> Tensor:
    """Elements a to b, 1-D: not copied from a file, or computed and rounded once, to the tensor's dtype."""
    if isinstance(info, Gathered):
        return gathered(files, info, a, b)
    if not isinstance(info, Expanded):
        (span,) = spans(info, a, b)
        return files.tensor(span, TORCH_DTYPES.get(info.dtype, torch.uint8))
    base = read(files, info.base, a, b)
    if a == b:
        return base
    columns = math.prod(info.shape[1:])
    if isinstance(info.change, Rescaled):
        return _rescaled(base, files.whole(info.change.factor).view(-1), info.change.by_row, a, columns)
    up = files.whole(info.change.up)
    down = torch.ones(1, 1, dtype=up.dtype) if info.change.down is None else files.whole(info.change.down)
    up, down = (part.view(part.shape[0], -1) for part in (up, down))
    if info.change.transposed:
        up, down = up.t(), down.t()
    return ops.low_rank(base, up, down, info.change.scale, first=a)


def whole(files: Inputs, info: TensorInfo) -> Tensor:
    """A tensor in its shape."""
    return read(files, info, 0, info.numel).view(info.shape) if is_computed(info) else files.whole(info)


def gathered_spans(info: Gathered, a: int, b: int) -> list[Span]:
    """The bytes that most of a gathered matrix's elements come from."""
    source = info.rows.sources[0]
    width = _width(info)
    first, last = info.rows.extent(a // width, -(-b // width))
    return spans(source, first * width, last * width)


def gathered(files: Inputs, info: Gathered, a: int, b: int) -> Tensor:
    """Elements a to b of a matrix whose rows are gathered."""
    rows, width, dtype = info.rows, _width(info), TORCH_DTYPES[info.dtype]
    if a == b:
        return torch.empty(0, dtype=dtype)
    first, last = a // width, -(-b // width)
    found = _picked(files, info, first, last).to(dtype)
    padded = info.shape[0] - rows.padding
    for row in range(first, min(last, padded)):
        if rows.picks[row] < 0:
            lent = ((rows.sources[source], place * width) for source, place in rows.means.get(row, ()))
            own = [read(files, source, start, start + width).double() for source, start in lent]
            found[row - first] = torch.stack(own).mean(0) if own else 0
    if last > padded:
        found[max(0, padded - first) :] = _mean_row(files, info.slab(padded))
    return found.view(-1)[a - first * width : b - first * width]


def _picked(files: Inputs, info: Gathered, first: int, last: int) -> Tensor:
    """A copy of the rows that come from the first source, read no further than they lie; the others are any."""
    source, picks, width = info.rows.sources[0], torch.tensor(info.rows.picks[first:last]), _width(info)
    low, high = info.rows.extent(first, last)
    if low == high:  # they are far apart
        low, high = 0, source.shape[0] if int(picks.max()) >= 0 else 1
    return read(files, source, low * width, high * width).view(-1, width)[(picks - low).clamp(min=0)]


def _mean_row(files: Inputs, info: Gathered) -> Tensor:
    """The mean of all rows of a gathered matrix."""
    width, count = _width(info), info.shape[0]
    total = torch.zeros(width, dtype=torch.float64)
    for start in range(0, count, ROWS):
        stop = min(start + ROWS, count)
        total += gathered(files, info, start * width, stop * width).view(-1, width).double().sum(0)
    return total / count


def _width(info: TensorInfo) -> int:
    """Elements that one index of the first dimension selects."""
    return max(1, math.prod(info.shape[1:]))


def _rescaled(base: Tensor, factor: Tensor, by_row: bool, first: int, columns: int) -> Tensor:
    """Elements from `first` on of a matrix, each times the factor of its row or of its column."""
    wide = ops.working_dtype([base, factor])
    element = torch.arange(first, first + base.numel())
    own = factor.to(wide)[element // columns if by_row else element % columns]
    return ops.combine(None, [base.to(wide) * own], dtype=base.dtype).merged
