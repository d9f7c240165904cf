"""Calls of ops that wait for one another, so that a backend makes those of many small tensors at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any

Result = Callable[[], int]  # what a call returns, once it has been computed
Told = Callable[[Result], None]
Many = Callable[[Sequence[tuple[Any, ...]]], Callable[[], Sequence[int]] | None]


class Batch:
    """Calls that wait, by the function that makes many of them."""

    def __init__(self) -> None:
        self._calls: dict[Many, list[tuple[tuple[Any, ...], Told]]] = {}
        self.made = 0  # how often

    def add(self, many: Many, arguments: tuple[Any, ...], told: Told) -> None:
        self._calls.setdefault(many, []).append((arguments, told))

    def make(self) -> None:
        """Make the calls, and tell the results of those that have some; nobody waits for them here."""
        calls, self._calls = self._calls, {}
        self.made += 1
        for many, of_many in calls.items():
            results = many([arguments for arguments, _ in of_many])
            if results is not None:
                computed = cache(results)
                for i, (_, told) in enumerate(of_many):
                    told(partial(_one, computed, i))


def _one(results: Callable[[], Sequence[int]], i: int) -> int:
    return results()[i]


class Line:
    """Calls of which each may need the results of those before, and which need none of other lines'."""

    def __init__(self, batch: Batch, told: Told) -> None:
        self._batch, self._told = batch, told
        self._waiting = -1  # the making that the last call waits for

    def settle(self) -> None:
        """Let no call of this line wait."""
        if self._waiting == self._batch.made:
            self._batch.make()

    def tell(self, result: Result) -> int:
        """Let what a call has returned be asked for later; 0 for now."""
        self._told(result)
        return 0

    def kernel(self, kernel: Callable[..., Any], many: Many | None) -> Callable[..., Any]:
        """What an op calls in place of its kernel. A call that waits returns 0 for now."""
        self.settle()
        if many is None:
            return kernel

        def wait(*arguments: Any) -> int:
            self._batch.add(many, arguments, self._told)
            self._waiting = self._batch.made
            return 0

        return wait


_batch: ContextVar[Batch | None] = ContextVar("batch", default=None)
line: ContextVar[Line | None] = ContextVar("line", default=None)


@contextmanager
def batch() -> Iterator[None]:
    """Within, what is called in `waiting` may wait until the end. Left by an exception, it is not called."""
    own = Batch()
    token = _batch.set(own)
    try:
        yield
    finally:
        _batch.reset(token)
    own.make()


@contextmanager
def waiting(told: Told) -> Iterator[None]:
    """In a batch, ops called within may wait, where their backend can do many tensors at once.

    Only ops may look at results, and at none of another `waiting`. What a kernel returns is 0 for now; `told` is given
    what asks for it later.
    """
    own = _batch.get()
    if own is None:
        yield
        return
    token = line.set(Line(own, told))
    try:
        yield
    finally:
        line.reset(token)


@contextmanager
def at_once() -> Iterator[None]:
    """Within `waiting`, let nothing wait: anything may look at results."""
    own = line.get()
    if own is not None:
        own.settle()
    token = line.set(None)
    try:
        yield
    finally:
        line.reset(token)
