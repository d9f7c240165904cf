"""Measure launch settings on this GPU, and write those that are faster to kernels/cuda/settings.json.

    python bench/gpu/run.py tune
    python bench/gpu/tune.py OP …

With the paths that bench/gpu/run.py sets. For each entry of the table, or those of some ops: elements at a time, warps
and, where a program can go over several, tiles, with three models; then how many models to unroll. What is not faster
by 3 % than what there is stays as it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from calls import OF_BYTES, STANDS_FOR, calls, traffic
from fastmerge.kernels.cuda.launch import BLOCK, form
from fastmerge.kernels.cuda.settings import FILE, Settings, key, table
from roofline import tensors
from timing import milliseconds

TILES, WARPS = (512, 1024, 2048, 4096), (2, 4, 8)
UNROLLED = (2, 4, 8)  # each number is compiled when first met, which takes seconds; more share one kernel
# Of programs that go over several tiles: elements, and tiles and warps.
SPANS, OF_SPANS = (1024, 2048, 4096, 8192), ((128, 1), (256, 1), (512, 2), (512, 4), (1024, 4))
GAIN = 0.97
ELEMENTS = 1 << 27


def candidates(op: str, now: Settings) -> list[Settings]:
    """Other tiles and warps whose threads have between four and 32 elements, and other spans of several tiles.

    Programs that form sums go over several tiles; those of combine over several or one, whichever they do now.
    """
    combines = op.startswith("combine")
    spans = [Settings(tile, warps, now.unrolled, span // tile) for tile, warps in OF_SPANS for span in SPANS]
    single = [
        Settings(tile, warps, now.unrolled, 1)
        for tile in TILES
        for warps in WARPS
        if BLOCK % tile == 0 and 4 <= tile // (32 * warps) <= 32
    ]
    found = (spans if combines or now.tiles > 1 else []) + (single if combines or now.tiles == 1 else [])
    return list(dict.fromkeys(found))


def best(entry: dict[str, Any]) -> tuple[Settings, str]:
    """The fastest settings of an entry, and why."""
    own = key(entry)
    name, size, aligned = own
    op, dtype, chosen = STANDS_FOR.get(name, name), OF_BYTES[size], table()[own]
    part = slice(0, -1) if aligned else slice(1, None)  # of one element too many

    def time_of(settings: Settings, k: int) -> float:
        table()[own] = settings
        form.cache_clear()
        n = ELEMENTS // (1 if k <= 3 else 2)
        base, models = tensors(n + 1, dtype, k)
        took = milliseconds(calls(base[part], [model[part] for model in models], "cuda")[op])
        print(f"{op} {dtype} K={k} {settings}: {traffic(op, n, k, dtype.itemsize) / took / 1e6:.0f} GB/s", flush=True)
        return took

    reference, reason = time_of(chosen, 3), entry["reason"]
    times = {other: time_of(other, 3) for other in candidates(name, chosen) if other != chosen}
    fastest = min(times, key=lambda other: times[other])
    if times[fastest] < GAIN * reference:
        chosen = fastest
        reason = (
            f"measured: {times[fastest] / reference:.2f} of the time of what was there, {torch.cuda.get_device_name()}"
        )
    for k in UNROLLED if chosen.unrolled else ():
        looped, unrolled = (time_of(replace(chosen, unrolled=limit), k) for limit in (1, k))
        if unrolled > GAIN * looped:
            break
        chosen = replace(chosen, unrolled=max(k, chosen.unrolled))
    table()[own] = chosen
    return chosen, reason


def main(
    table_file: Path = Path(__file__).parents[2] / "kernels" / "cuda" / FILE.name, only: Sequence[str] = ()
) -> None:
    entries = json.loads(table_file.read_text())
    for entry in (entry for entry in entries if not only or entry["op"] in only):
        chosen, entry["reason"] = best(entry)
        entry |= asdict(chosen)
    lines = [f" {json.dumps(entry, ensure_ascii=False)}".replace(', "reason"', ',\n  "reason"') for entry in entries]
    table_file.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main(only=sys.argv[1:])
