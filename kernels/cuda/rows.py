"""Rows of a tensor in programs: several short ones to each, long ones cut into parts, whose results torch adds up.

A program has TILE / WIDTH rows, and up to TILES · WIDTH elements of each: rows as long as a tile have all its width.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .launch import Launch
from .numeric import pointer, widen


def cut(launch: Launch, rows: int, columns: int) -> int:
    """Give the launch a program for each part of its rows; returns how many parts a row has.

    EVEN: every row begins where a 128-bit load may, and ends at such a place.
    """
    given = launch.constants
    width = min(given["TILE"], triton.next_power_of_2(columns))
    parts: int = triton.cdiv(columns, width * given["TILES"])
    launch.programs = triton.cdiv(rows, given["TILE"] // width) * parts
    launch.constants = given | {"WIDTH": width, "EVEN": given["ALIGNED"] and columns % 16 == 0}
    return parts


@triton.jit
def place_in_rows(table, columns, EVEN: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr, WIDTH: tl.constexpr):
    """This program's rows [TILE / WIDTH], of how many, their elements' number, and from where to where in each."""
    columns = tl.cast(columns, tl.int64)
    if EVEN:
        columns = tl.multiple_of(columns, 16)
    SPAN: tl.constexpr = WIDTH * TILES  # noqa: N806
    program, parts = tl.program_id(0).to(tl.int64), (columns + SPAN - 1) // SPAN
    own = program // parts * (TILE // WIDTH) + tl.arange(0, TILE // WIDTH)
    start = program % parts * SPAN
    return own, tl.load(table) // columns, columns, start, tl.minimum(start + SPAN, columns)


@triton.jit
def elements_of_rows(own, rows, columns, start, WIDTH: tl.constexpr):
    """Where the next WIDTH elements of each row are in their tensor, and which of them there are."""
    at = start + tl.arange(0, WIDTH)
    return own[:, None] * columns + at[None, :], (own < rows)[:, None] & (at < columns)[None, :]


@triton.jit
def load_rows(slot, places, there, ELEMENT: tl.constexpr, ALIGNED: tl.constexpr, WORKING: tl.constexpr):
    """Elements of the tensor in a slot of the table, in the working type, zeros where there are none."""
    return widen(tl.load(pointer(slot, ELEMENT, ALIGNED) + places, mask=there, other=0.0), WORKING)
