"""The step on [0, 1] that makes a function least, from values alone."""

from __future__ import annotations

import math
from collections.abc import Callable

GOLDEN = (3 - math.sqrt(5)) / 2
TOLERANCE = 1e-4  # of the step
EVALUATIONS = 24
NEAR_END = 0.99  # a function with one minimum that falls from here to 1 has it between them
DEVIATION, NOISE = 1e-3, 1e-6  # from a parabola: of its depth, and of the value itself, as rounding makes it


def line_search(function: Callable[[float], float], start: float, slope: float) -> tuple[float, float]:
    """argmin and min over [0, 1] of a function that begins with the value `start` and the slope `slope`.

    Exact for a parabola with two evaluations. Otherwise Brent's method (golden sections and parabolas, Brent 1973,
    chapter 5), which finds the minimum of a function with one, and of any other no worse a point than the ends. Values
    that are not finite count as infinite. (0, start) where no step is better, and where the slope does not fall.
    """
    if slope >= 0:
        return 0.0, start
    seen = {0.0: start}

    def value(step: float) -> float:
        if step not in seen:
            found = function(step)
            seen[step] = found if math.isfinite(found) else math.inf
        return seen[step]

    curvature = 2 * (value(1.0) - start - slope)
    vertex = -slope / curvature if 0 < curvature < math.inf else math.inf
    if vertex < 1:
        expected = start + slope * vertex / 2
        if abs(value(vertex) - expected) > DEVIATION * (start - expected) + NOISE * abs(start):
            _brent(value, vertex)
    elif value(1.0) == math.inf:
        _brent(value, GOLDEN)
    elif value(NEAR_END) < value(1.0):
        _brent(value, NEAR_END)
    best = min(seen, key=lambda step: (seen[step], step))
    return best, seen[best]


def _brent(value: Callable[[float], float], first: float) -> None:
    """Look at points of (0, 1) until the bracket of the least one is small."""
    low, high = 0.0, 1.0
    x = w = v = first
    moved = before = 0.0
    for _ in range(EVALUATIONS):
        middle = (low + high) / 2
        if abs(x - middle) <= 2 * TOLERANCE - (high - low) / 2:
            return
        move = _parabola(value, x, w, v) if abs(before) > TOLERANCE else None
        if move is None or abs(move) >= abs(before) / 2 or not low < x + move < high:
            before = (low if x >= middle else high) - x
            move = GOLDEN * before
        else:
            before = moved
        moved = math.copysign(max(abs(move), TOLERANCE), move)
        u = min(max(x + moved, low), high)
        if value(u) <= value(x):
            low, high = (x, high) if u >= x else (low, x)
            x, w, v = u, x, w
        else:
            low, high = (u, high) if u < x else (low, u)
            if value(u) <= value(w) or w == x:
                w, v = u, w
            elif value(u) <= value(v) or v in (x, w):
                v = u


def _parabola(value: Callable[[float], float], x: float, w: float, v: float) -> float | None:
    """From x to the vertex of the parabola through three points, None where they make none."""
    a, b = (x - w) * (value(x) - value(v)), (x - v) * (value(x) - value(w))
    divisor = 2 * (b - a)
    if not divisor or not math.isfinite(divisor):
        return None
    return -((x - v) * b - (x - w) * a) / divisor
