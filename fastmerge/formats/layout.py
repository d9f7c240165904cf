"""Which file and bytes every output tensor gets, known before anything is computed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .safetensors import DTYPES, write_header

SHARD_LIMIT = 5_000_000_000  # bytes, as transformers splits


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes `start` to `stop` of the output file `file`."""

    file: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class FilePlan:
    """An output file: its whole size, and the header it begins with."""

    name: str
    size: int
    header: bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """Output files, the place of every tensor, and the index that sharded files need (None for a single file)."""

    files: tuple[FilePlan, ...]
    places: dict[str, Place]
    index_name: str
    index: bytes | None

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)


def plan_layout(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]],
    stem: str = "model",
    limit: int = SHARD_LIMIT,
    metadata: Mapping[str, str] | None = None,
    folder: str = "",
) -> Layout:
    """Lay out tensors (name, dtype, shape) in order, in files of `folder` ("NAME/") named as Hugging Face names them.

    A file takes tensors up to `limit` bytes; a larger tensor has a file to itself.
    """
    shards: list[list[tuple[str, str, tuple[int, ...]]]] = [[]]
    filled = 0
    for tensor in tensors:
        nbytes = math.prod(tensor[2]) * DTYPES[tensor[1]]
        if shards[-1] and filled + nbytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += nbytes
    files, places = [], {}
    for number, shard in enumerate(shards, 1):
        name = f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        header, spans = write_header(shard, {"format": "pt", **(metadata or {})})
        size = max((stop for _, stop in spans.values()), default=len(header))
        files.append(FilePlan(folder + name, size, header))
        places.update({tensor: Place(folder + name, *span) for tensor, span in spans.items()})
    index = None
    if len(shards) > 1:
        total = sum(place.stop - place.start for place in places.values())
        weight_map = {tensor: places[tensor].file.removeprefix(folder) for tensor in sorted(places)}
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        index = (json.dumps(content, indent=2) + "\n").encode()
    return Layout(tuple(files), places, f"{folder}{stem}.safetensors.index.json", index)
