"""Values that change with depth: {layers: [0.1, 0.5, 0.9]} is 0.1 in the first layer, 0.9 in the last, linear between.

A layer is known by its number in the tensor's name: the first number after `layers`, `layer`, `h`, `blocks`, `block`,
`resblocks` or `stages` (`model.layers.7.mlp.up.weight`), or, where no tensor has such a name, the first number between
dots. Numbered modules of one name are a stack, and the depth of a layer is its rank among the n of its stack, divided
by n − 1 (0 if it is alone). Encoder and decoder are two stacks, each with depths from 0 to 1. A tensor outside all
layers has depth 0 if its name tells that it comes before them (INPUT), else 1. File order tells nothing: safetensors
files are sorted by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

LAYER = re.compile(r"(?P<stack>(?:.*?\.)??(?:layers?|h|blocks?|resblocks|stages))\.(?P<number>\d+)\.")
NUMBERED = re.compile(r"(?P<stack>.*?)\.(?P<number>\d+)\.")
# Embeddings of every kind (but no head called so), and what vision and audio models begin with.
INPUT = re.compile(
    r"(?<!un)embed(?!_out)|_token\b|(^|\.)(wte|wpe|shared|stem|patch|pos_|pre_|ln_pre|project_in|feature_|bn1|conv(?!\w*out))"
)


def placed(tensors: Iterable[str]) -> dict[str, tuple[str, int]]:
    """The stack and the number of every tensor that is in a layer; empty if none is."""
    names = list(tensors)
    for pattern in (LAYER, NUMBERED):
        found = {name: (match["stack"], int(match["number"])) for name in names if (match := pattern.match(name))}
        if found:
            return found
    return {}


def depths(tensors: Sequence[str]) -> dict[str, Fraction]:
    """The depth of every tensor, from 0 to 1; empty if none is in a layer."""
    found = placed(tensors)
    if not found:
        return {}
    stacks: dict[str, set[int]] = {}
    for stack, number in found.values():
        stacks.setdefault(stack, set()).add(number)
    ranks = {stack: {number: rank for rank, number in enumerate(sorted(own))} for stack, own in stacks.items()}
    result = {}
    for name in tensors:
        if name not in found:
            result[name] = Fraction(0 if INPUT.search(name) else 1)
        else:
            stack, number = found[name]
            own = ranks[stack]
            result[name] = Fraction(own[number], max(1, len(own) - 1))
    return result


def is_gradient(value: Any) -> bool:
    """Whether a value is written {layers: […]}."""
    return isinstance(value, Mapping) and set(value) == {"layers"} and isinstance(value["layers"], (list, tuple))


def has_gradient(value: Any) -> bool:
    """Whether a value is a gradient, or holds one for a model."""
    if is_gradient(value):
        return True
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return any(map(has_gradient, inner))


def wrong_gradient(value: Any) -> str:
    """What is wrong with a gradient by itself, or an empty string."""
    points = value["layers"]
    if len(points) < 2:
        return f"has {len(points)} values; give two or more, for the first layer to the last"
    if all(isinstance(p, (int, float)) and not isinstance(p, bool) and math.isfinite(p) for p in points):
        return ""
    return f"is {list(points)!r}; it should hold finite numbers alone"


def at_depth(value: Any, depth: Fraction) -> Any:
    """The value with every gradient in it taken at a depth, exact and rounded once."""
    if is_gradient(value):
        return _interpolated(value["layers"], depth)
    if isinstance(value, Mapping):
        return {key: at_depth(inner, depth) for key, inner in value.items()}
    return [at_depth(inner, depth) for inner in value] if isinstance(value, (list, tuple)) else value


def _interpolated(points: Sequence[float], depth: Fraction) -> float:
    place = depth * (len(points) - 1)
    first = min(math.floor(place), len(points) - 2)
    # As decimals, not as the binary fractions near them: halfway between 0.1 and 0.5 lies 0.3, not 0.30000000000000004.
    low, high = (Fraction(repr(float(point))) for point in points[first : first + 2])
    return float(low + (high - low) * (place - first))
