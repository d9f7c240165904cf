"""What differs between two checkpoints, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..errors import InputError, attempt
from ..formats.checkpoint import Checkpoint
from ..formats.mapping import Inputs
from ..formats.models import open_models
from ..forms import well_formed
from ..recipe.memory import LANES, MAX_CHUNK
from ..recipe.options import name_problems
from ..recipe.preflight import Alignment, Rename, TensorPlan, align
from .run_pass import Progress, expect
from .slots import HostSlot
from .stream import Source, Work, stream, threads_each

SLAB = 1 << 18  # elements that are compared at a time, in cache; a multiple of ops.BLOCK


@dataclass(slots=True)
class Difference:
    """Of two tensors a and b, or of their task vectors a − base and b − base where a base was given.

    `norm_a` and `norm_b` are Euclidean; `change` is ‖b − a‖, `relative` that over ‖a‖, `largest` the largest |b − a| of
    an element; `cosine` that between a and b; `same_sign` the fraction of elements whose signs are the same (that of
    zero is one of its own). None where there is no number: a division by zero, or `nonfinite` elements of b − a.
    """

    name: str
    elements: int
    norm_a: float | None
    norm_b: float | None
    change: float | None
    relative: float | None
    largest: float | None
    cosine: float | None
    same_sign: float | None
    nonfinite: int


@dataclass(slots=True)
class Differences:
    """By tensor, the most changed first, and of all `tensors` together; `copied` are integer tensors that differ."""

    a: str
    b: str
    base: str | None
    total: Difference
    tensors: list[Difference]
    copied: list[str]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The differences as JSON."""
        return asdict(self)


@well_formed
def diff(
    a: str | Path,
    b: str | Path,
    *,
    base: str | Path | None = None,
    task_specific: Sequence[str] = (),
    rename: Mapping[str, Rename] | None = None,
    progress: Progress | None = None,
) -> Differences:
    """Compare the weights of two checkpoints; with a `base`, their task vectors.

    task_specific: patterns of tensors to leave out; rename: for "A" and "B", (old, new) prefixes. Raises InputError
    where the checkpoints do not fit together.
    """
    opened, alignment = checked(a, b, base, task_specific, rename)
    found: dict[str, _Sums] = {}
    copied: list[str] = []
    works = [
        _comparing(tensor, copied) if tensor.copy else _measuring(tensor, found.setdefault(tensor.name, _Sums()))
        for tensor in alignment.tensors
    ]
    inputs = Inputs([header for checkpoint in opened for header in checkpoint.fetched().headers])
    pieces = [piece for work in works for piece in work.pieces(MAX_CHUNK)]
    expect(progress, sum(piece.nbytes for piece in pieces))
    with threads_each(LANES) as begin:
        stream(pieces, inputs, _Nowhere(), progress=progress, lanes=LANES, begin=begin)
    inputs.check_unchanged()
    tensors = [sums.difference(name) for name, sums in found.items()]
    tensors.sort(key=lambda d: math.inf if d.relative is None else d.relative, reverse=True)
    total = sum(found.values(), _Sums()).difference("total")
    return Differences(
        str(a), str(b), None if base is None else str(base), total, tensors, copied, list(alignment.notes)
    )


def checked(
    a: str | Path,
    b: str | Path,
    base: str | Path | None,
    task_specific: Sequence[str],
    rename: Mapping[str, Rename] | None,
) -> tuple[list[Checkpoint], Alignment]:
    """All checkpoints, and how they fit together; InputError with all problems."""
    problems = name_problems(["A", "B"], rename or {})
    origin, models = open_models(base, [("A", a), ("B", b)], problems, fetch=False)
    opened = [checkpoint for checkpoint in models if checkpoint is not None]
    alignment = None
    if len(opened) == 2 and (base is None or origin is not None):
        alignment = attempt(problems, lambda: align(origin, opened, task_specific=task_specific, rename=rename))
    if problems or alignment is None:
        raise InputError(problems)
    return [*opened, *([origin] if origin else [])], alignment


@dataclass(slots=True)
class _Sums:
    """What a tensor's chunks add up to."""

    elements: int = 0
    products: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))  # ⟨a, b⟩, ‖b‖², ‖a‖²
    moments: Tensor = field(default_factory=lambda: torch.zeros(4, 1, dtype=torch.float64))  # of b − a
    nonfinite: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))
    same: int = 0

    def add(self, base: Tensor | None, one: Tensor, other: Tensor) -> None:
        """A chunk of the two tensors, and of base where there is one."""
        ops.moments(one, [other], sums=self.moments, nonfinite=self.nonfinite)
        self.elements += one.numel()
        for own in (slice(start, start + SLAB) for start in range(0, one.numel(), SLAB)):
            a, b = one[own], other[own]
            if base is not None:
                a, b = ops.delta_sum(base[own], [a]), ops.delta_sum(base[own], [b])
            ops.inner_products(a, [b], sums=self.products)
            self.same += int(torch.eq(a.sign(), b.sign()).sum())

    def __add__(self, more: _Sums) -> _Sums:
        moments = self.moments + more.moments
        moments[3] = torch.maximum(self.moments[3], more.moments[3])
        return _Sums(
            self.elements + more.elements,
            self.products + more.products,
            moments,
            self.nonfinite + more.nonfinite,
            self.same + more.same,
        )

    def difference(self, name: str) -> Difference:
        """The numbers that users see."""
        dot, square_b, square_a = self.products.tolist()
        norm_a, norm_b, change = (math.sqrt(x) for x in (square_a, square_b, self.moments[2].item()))
        return Difference(
            name,
            self.elements,
            _number(norm_a),
            _number(norm_b),
            _number(change),
            _number(_ratio(change, norm_a) if change else 0.0),
            _number(self.moments[3].item()) if math.isfinite(change) else None,
            _number(_ratio(dot, norm_a * norm_b)),
            _number(_ratio(self.same, self.elements)),
            int(self.nonfinite),
        )


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan


def _number(value: float) -> float | None:
    """What JSON has a number for."""
    return value if math.isfinite(value) else None


def _measuring(tensor: TensorPlan, sums: _Sums) -> Work:
    infos = [*([tensor.base] if tensor.base else []), *tensor.models]

    def run(_: int, sources: list[Tensor], __: list[Tensor]) -> None:
        *base, one, other = sources
        sums.add(base[0] if base else None, one, other)

    return Work(tensor.numel, tuple(Source(info) for info in infos), (), run)


def _comparing(tensor: TensorPlan, copied: list[str]) -> Work:
    """An integer tensor, whose name is noted if it differs."""

    def run(_: int, sources: list[Tensor], __: list[Tensor]) -> None:
        if not torch.equal(*sources) and tensor.name not in copied:
            copied.append(tensor.name)

    return Work(tensor.numel, tuple(Source(info) for info in tensor.models), (), run)


class _Nowhere:
    """A sink for works that write nothing."""

    def __init__(self) -> None:
        self._slot = HostSlot(1)

    def slot(self) -> HostSlot:
        return self._slot

    def put(self, slot: HostSlot) -> None:
        pass
