"""safetensors headers, read with suspicion and written to the byte the same.

https://github.com/huggingface/safetensors#format: 8 bytes of little-endian header length, a JSON header, the data.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import InputError

T = TypeVar("T")

DTYPES = {  # bytes an element
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2": 1,
    "F8_E5M2FNUZ": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}
FLOATS = frozenset({"BF16", "F16", "F32", "F64"})  # what can be merged
HEADER_LIMIT = 100_000_000  # bytes, as in the safetensors library
NUMEL_LIMIT = 1 << 62  # elements of a tensor; far beyond any file, and what a bound on every product keeps cheap
LISTED = 10  # problems of one kind that are spelled out


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: bytes `start` to `stop`, counted from the beginning of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says of itself: tensors in the order of their data, `digest` the header's SHA-256.

    `modified` is when the file was last written, in nanoseconds.
    """

    file: Path
    size: int
    modified: int
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    digest: str


def read_header(file: Path) -> Header:
    """Read and check the header of a file; InputError with everything that is wrong with it."""
    try:
        status = file.stat()
        with file.open("rb") as stream:
            return header_of(
                file, status.st_size, lambda _, stop: stream.read(stop - stream.tell()), status.st_mtime_ns
            )
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None


def header_of(file: Path, size: int, read: Callable[[int, int], bytes], modified: int = 0) -> Header:
    """The header of a file of `size` bytes, of which `read(start, stop)` gives some; it is asked from the first on."""
    length = int.from_bytes(read(0, min(8, size)), "little")
    if size < 8:
        raise InputError(
            f"{file}: has {size} bytes, a safetensors file has at least 8; it is empty or cut off: download it again"
        )
    if length > min(HEADER_LIMIT, size - 8):
        raise InputError(
            f"{file}: its header claims {length} bytes, the file has {size} "
            f"(at most {HEADER_LIMIT} are allowed); it is no safetensors file, or damaged: download it again"
        )
    raw = read(8, 8 + length)
    try:
        content = json.loads(raw.decode(), object_pairs_hook=_unique)  # of bytes, json would guess the encoding
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: its header is not valid JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: its header is not a JSON object; download it again")
    metadata = content.pop("__metadata__", None)
    if metadata is None:  # the library takes null for none
        metadata = {}
    problems = []
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        problems.append(f"{file}: __metadata__ must map strings to strings")
    elif not _encodable((*content, *metadata, *metadata.values())):
        problems.append(f"{file}: a name in its header is no Unicode text (half of a surrogate pair); save it again")
    tensors = []
    for name, entry in content.items():
        tensor = _tensor(file, name, entry, 8 + length)
        if isinstance(tensor, str):
            problems.append(f"{file}: tensor {name!r}: {tensor}")
        else:
            tensors.append(tensor)
    if not problems:
        tensors.sort(key=lambda t: (t.start, t.stop))
        problems = _layout_problems(file, tensors, 8 + length, size)
    if problems:
        raise InputError(limited(problems))
    digest = hashlib.sha256(raw).hexdigest()
    return Header(file, size, modified, {t.name: t for t in tensors}, metadata, digest)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"{name!r} occurs twice")
        content[name] = value
    return content


def _tensor(file: Path, name: str, entry: Any, data: int) -> TensorInfo | str:
    """The tensor an entry describes, or what is wrong with it; `data` is the offset at which data begins."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        return "its entry must have dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"unknown dtype {_shown(dtype)}; there are {', '.join(DTYPES)}"
    if not _naturals(shape):
        return f"shape must be a list of non-negative integers, it is {_shown(shape)}"
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"data_offsets must be two non-negative integers in order, they are {_shown(offsets)}"
    numel = 1
    for extent in shape:
        numel *= extent
        if numel > NUMEL_LIMIT:
            return f"shape {_shown(shape)} has more than 2^62 elements"
    expected = numel * DTYPES[dtype]
    if offsets[1] - offsets[0] != expected:
        return (
            f"{dtype} {_shown(shape)} takes {expected} bytes, its data_offsets {offsets} span {offsets[1] - offsets[0]}"
        )
    return TensorInfo(name, dtype, tuple(shape), file, data + offsets[0], data + offsets[1])


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v <= NUMEL_LIMIT for v in value)


def _encodable(texts: Iterable[str]) -> bool:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def limited(items: Sequence[T], problem: Callable[[T], str] = str) -> list[str]:
    """The problem of each item; of more than LISTED items only the first ones', and how many more there are."""
    listed = [problem(item) for item in items[:LISTED]]
    more = len(items) - len(listed)
    return [*listed, f"… and {more} more like the last"] if more else listed


def _layout_problems(file: Path, tensors: list[TensorInfo], data: int, size: int) -> list[str]:
    """Data must follow the header without overlaps and holes, and end with the file."""
    problems = []
    end, previous = data, "the header"
    for tensor in tensors:
        if tensor.start != end:
            what = "overlaps" if tensor.start < end else "leaves a hole after"
            problems.append(f"{file}: tensor {tensor.name!r} {what} {previous}; the file is damaged")
        if tensor.nbytes:
            end, previous = max(end, tensor.stop), repr(tensor.name)
    if end != size:
        what = "it is cut off" if end > size else "there are stray bytes at its end"
        problems.append(f"{file}: the header describes {end} bytes, the file has {size}: {what}; download it again")
    return problems


def write_header(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str], align: int = 4096
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The header for tensors (name, dtype, shape) laid out in order, and the bytes of the file that each takes.

    Padded with spaces so that data starts at a multiple of `align`, where pages can be written past the cache.
    """
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    spans, offset = {}, 0
    for name, dtype, shape in tensors:
        stop = offset + math.prod(shape) * DTYPES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, stop]}
        spans[name] = (offset, stop)
        offset = stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % align)
    data = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {n: (data + a, data + b) for n, (a, b) in spans.items()}
