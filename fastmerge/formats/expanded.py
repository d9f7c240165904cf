"""Tensors that no file holds: a base model's, changed by what an adapter stores, computed where they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .gathered import Gathered
from .safetensors import TensorInfo


@dataclass(frozen=True, slots=True)
class LowRank:
    """LoRA: base + scale · up · down, of the tensor as a matrix [rows, rest].

    up is stored as [rows, r] and down as [r, rest]; `transposed`, up as [r, rows] and down as [rest, r]. Without a
    down, up is [rows] and the change itself.
    """

    up: TensorInfo
    down: TensorInfo | None
    scale: float
    transposed: bool = False

    @property
    def parts(self) -> tuple[TensorInfo, ...]:
        return (self.up,) if self.down is None else (self.up, self.down)


@dataclass(frozen=True, slots=True)
class Rescaled:
    """(IA)³: each row of base times a factor of its own, or each column."""

    factor: TensorInfo
    by_row: bool

    @property
    def parts(self) -> tuple[TensorInfo, ...]:
        return (self.factor,)


@dataclass(frozen=True, slots=True)
class Expanded(TensorInfo):
    """A tensor that is computed: `base`, which `file`, `start` and `stop` are of, with a change."""

    base: TensorInfo
    change: LowRank | Rescaled

    @classmethod
    def of(cls, base: TensorInfo, change: LowRank | Rescaled) -> Expanded:
        """It has base's name, dtype and shape."""
        return cls(base.name, base.dtype, base.shape, base.file, base.start, base.stop, base, change)


def stored(info: TensorInfo) -> Iterator[TensorInfo]:
    """The tensors of files that one is made of: itself, if it lies in a file."""
    if isinstance(info, Expanded):
        yield from stored(info.base)
        yield from info.change.parts
    elif isinstance(info, Gathered):
        for source in info.rows.sources[: 1 if not info.rows.means else None]:
            yield from stored(source)
    else:
        yield info


def is_computed(info: TensorInfo | None) -> bool:
    """Whether a tensor lies in no file as it is."""
    return isinstance(info, (Expanded, Gathered))


def stored_bytes(infos: Iterable[TensorInfo]) -> int:
    """Bytes of files that these tensors are made of, each counted once."""
    places = {(part.file, part.start): part.nbytes for info in infos for part in stored(info)}
    return sum(places.values())


def place(info: TensorInfo | None) -> Any:
    """What tells a tensor from others, as JSON: where it lies, or what it is made of."""
    if isinstance(info, Gathered):
        return [info.dtype, info.rows.digest([place(source) for source in info.rows.sources])]
    if not isinstance(info, Expanded):
        return info and [str(info.file), info.start]
    change = info.change
    how = [change.scale, change.transposed] if isinstance(change, LowRank) else [change.by_row]
    return [place(info.base), type(change).__name__, *how, *map(place, change.parts)]
