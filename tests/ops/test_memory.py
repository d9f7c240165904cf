"""Memory that tensors leave to those after them."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fastmerge import dispatch
from fastmerge.ops.memory import scratch, zeros

native = dispatch.load("native")
pytestmark = pytest.mark.skipif(isinstance(native, str), reason=str(native))
N = 1 << 20  # float32 in two large pages


def mapped(pages: object) -> int:
    return sum(map(len, pages._idle))  # type: ignore[attr-defined]


def test_what_nobody_uses_is_used_again() -> None:
    like = torch.empty(N, dtype=torch.bfloat16)
    first = scratch(like, torch.float32)
    assert (first.shape, first.dtype) == ((N,), torch.float32)
    place = first.data_ptr()
    part = first[7:9].fill_(3)
    del first
    gc.collect()
    other = scratch(like, torch.float32)
    assert other.data_ptr() != place  # a part is still there
    other.fill_(5)
    assert part.tolist() == [3, 3]
    del part
    gc.collect()
    again = scratch(like[: N // 2], torch.float64)
    assert again.data_ptr() == place


def test_idle_pieces_do_not_add_up() -> None:
    pages = type(native.pages)()  # type: ignore[union-attr]
    for size in (N, 2 * N, 3 * N, N, 4 * N):
        taken = pages.take(size, torch.float32)
        taken.fill_(1)
        del taken
        gc.collect()
        assert mapped(pages) <= 4 * (4 * N)
    assert mapped(pages) == 4 * (4 * N)


def test_zeros_are_shared() -> None:
    few, many = (zeros(torch.empty(n), torch.float32) for n in (5, 3 * N))
    assert few.tolist() == [0] * 5
    assert not many.any()
    assert zeros(many, torch.float64).data_ptr() == zeros(few, torch.float32).data_ptr()
    assert zeros(many.to(torch.bfloat16), torch.bfloat16).numel() == 3 * N


def test_garbage_gives_back_while_another_piece_is_taken() -> None:
    """A collection may begin anywhere, in what is locked too: it must not wait for its own thread."""

    class Collecting(list):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[Any]:
            gc.collect()
            return super().__iter__()

    pages = type(native.pages)()  # type: ignore[union-attr]
    pages._idle = Collecting()
    cycle: list[Any] = [pages.take(N, torch.float32)]
    cycle.append(cycle)
    del cycle
    taking = threading.Thread(target=pages.take, args=(N, torch.float32), daemon=True)
    taking.start()
    taking.join(60)
    assert not taking.is_alive()
