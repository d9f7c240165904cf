"""How much is worked on at a time, within a memory budget."""

from __future__ import annotations

from collections.abc import Sequence

from ..formats.expanded import is_computed
from ..formats.experts import PARTS
from ..formats.safetensors import DTYPES
from ..methods._declaration import Pass, Subject
from .outputs import Output, passes_on
from .preflight import Alignment, TensorPlan

BLOCK = 65_536  # elements; chunks are multiples, so that sums do not depend on the memory budget
MAX_CHUNK = 128 * BLOCK
SLOTS = 4  # chunks of output in flight between computing and writing
LANES = 2  # tensors worked on at the same time: what one leaves of the cores, the other takes


def least_chunk(subject: Subject, passes: Sequence[Pass]) -> int:
    """Elements that are worked on at a time at least: a row that may not be cut, in whole blocks."""
    return -(-subject.columns // BLOCK) * BLOCK if any(one.rows_whole for one in passes) else 0


def portions_of(
    outputs: Sequence[Output], alignment: Alignment, names: Sequence[str], budget: int, problems: list[str]
) -> tuple[int, int]:
    """Elements and tensors worked on at a time: as many as the memory budget allows, up to MAX_CHUNK and LANES."""
    layouts = [layout for output in outputs for layout in output.layouts.values()]
    places = [
        sum(p.stop - p.start for layout in layouts if (p := layout.places.get(t.name))) / max(1, t.numel)
        for t in alignment.tensors
        if t.numel >= BLOCK
    ]
    per_element = max(places, default=8.0) + 8  # and a float64 for what an op keeps between two others
    computed = max((_computed(t) / max(1, t.numel) for t in alignment.tensors), default=0.0)  # one chunk of them
    held = {t.name: _held(outputs, t, names, alignment) for t in alignment.merged}
    rows = max((_rows(outputs, t, names, alignment) for t in alignment.merged), default=0)
    most = max(held, key=lambda name: held[name], default="")
    for lanes in range(LANES, 0, -1):
        needs = per_element * SLOTS + computed * lanes
        least = int(max(BLOCK, rows) * needs)
        left = budget - sum(sorted(held.values())[-lanes:])
        if least <= left:
            break
    else:
        text = f"memory {budget:,} bytes: this merge needs at least {least + budget - left:,}"
        whole = f", {held[most]:,} of them for the whole of {most!r}" if held.get(most) else ""
        problems.append(f"{text}{whole}; pass --memory")
    chunk = MAX_CHUNK
    while chunk > BLOCK and chunk * needs > left:
        chunk //= 2
    return chunk, lanes


def _rows(outputs: Sequence[Output], tensor: TensorPlan, names: Sequence[str], alignment: Alignment) -> int:
    """Elements of a tensor that any pass needs at a time."""
    passes = [one for output in outputs for one in passes_on(output.parameters, tensor, names, alignment)]
    return min(tensor.numel, least_chunk(tensor.subject, passes))


def _held(outputs: Sequence[Output], tensor: TensorPlan, names: Sequence[str], alignment: Alignment) -> int:
    """Bytes that a pass holds of a tensor, and those of its experts on their way to the disk."""
    passes = [passes_on(output.parameters, tensor, names, alignment) for output in outputs]
    computed = _computed(tensor)
    held: int = max(
        sum(one.held for one in own) + (computed if any(one.needs_whole for one in own) else 0)
        for own in zip(*passes, strict=True)
    )
    places = [
        place
        for output in outputs
        for layout in output.experts.values()
        for part in PARTS
        if (place := layout.places.get(f"{tensor.name}/{part}"))
    ]
    return held + SLOTS * sum(p.stop - p.start for p in places)


def _computed(tensor: TensorPlan) -> int:
    """Bytes of those of a tensor's inputs that are computed, and not read in place."""
    inputs = (*([tensor.base] if tensor.base else []), *tensor.models)
    return sum(tensor.numel * DTYPES[info.dtype] for info in inputs if is_computed(info))
