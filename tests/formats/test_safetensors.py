"""Headers: whatever the bytes, a header or an InputError; what is written, the safetensors library reads."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoints import entry, write_file, write_raw
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmerge.errors import InputError
from fastmerge.formats.safetensors import DTYPES, Header, limited, read_header, write_header

safetensors = pytest.importorskip("safetensors")

A = entry("F32", (1,))


def read_or_problems(file: Path) -> Header | list[str]:
    try:
        return read_header(file)
    except InputError as error:
        return error.problems


def test_reads_what_was_written(tmp_path: Path) -> None:
    file = write_file(tmp_path / "x.safetensors", {"b": ("BF16", (2, 3)), "a": ("I64", ()), "none": ("F32", (0, 4))})
    header = read_header(file)
    data = file.stat().st_size - 20
    assert [(t.name, t.dtype, t.shape, t.start - data, t.nbytes, t.numel) for t in header.tensors.values()] == [
        ("b", "BF16", (2, 3), 0, 12, 6),
        ("a", "I64", (), 12, 8, 1),
        ("none", "F32", (0, 4), 20, 0, 0),
    ]
    assert header.size == file.stat().st_size


def test_tensors_come_in_the_order_of_their_data_not_of_the_header(tmp_path: Path) -> None:
    header = {"late": entry("F32", (1,), 4), "early": entry("F32", (1,), 0)}
    assert list(read_header(write_raw(tmp_path / "x", header, bytes(8))).tensors) == ["early", "late"]


def test_digest_tells_headers_apart_and_ignores_weights(tmp_path: Path) -> None:
    same = [read_header(write_raw(tmp_path / "x", {"a": A}, data)).digest for data in (b"1234", b"5678")]
    other = read_header(write_raw(tmp_path / "x", {"b": A}, b"1234")).digest
    assert same[0] == same[1] != other


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "0 bytes"),
        (b"1234567", "7 bytes"),
        ((1 << 63).to_bytes(8, "little"), "header claims 9223372036854775808 bytes, the file has 8"),
        ((3).to_bytes(8, "little") + b"{}", "header claims 3 bytes, the file has 10"),
        ((0).to_bytes(8, "little"), "not valid JSON"),
    ],
    ids=["empty", "short", "absurd length", "header cut off", "no header"],
)
def test_files_that_are_no_safetensors(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_header(file)


@pytest.mark.parametrize("missing", [True, False], ids=["missing", "a folder"])
def test_files_that_cannot_be_opened(tmp_path: Path, missing: bool) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_header(tmp_path / "none" if missing else tmp_path)


BAD = {
    "not JSON": (b"{", 0, "not valid JSON"),
    "not UTF-8": (json.dumps({"a": A}).encode("utf-16"), 4, "not valid JSON"),
    "deep JSON": (b"[" * 200_000, 0, "not valid JSON"),
    "not an object": (b"[]", 0, "not a JSON object"),
    "twice": (b'{"a":1,"a":2}', 0, "'a' occurs twice"),
    "half a surrogate": (json.dumps({"\ud800": A}).encode(), 4, "no Unicode text"),
    "metadata": ({"__metadata__": {"format": 1}, "a": A}, 4, "strings to strings"),
    **{
        f"metadata {value!r}": ({"__metadata__": value, "a": A}, 4, "strings to strings")
        for value in ([], 0, "", False)
    },
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, 4, "must have dtype"),
    "dtype": ({"a": A | {"dtype": "F33"}}, 4, "unknown dtype 'F33'"),
    "dtype type": ({"a": A | {"dtype": ["F32"]}}, 4, "unknown dtype"),
    "negative shape": ({"a": A | {"shape": [-1]}}, 4, r"non-negative integers, it is \[-1\]"),
    "fractional shape": ({"a": A | {"shape": [1.0]}}, 4, "non-negative integers"),
    "bool in shape": ({"a": A | {"shape": [True]}}, 4, "non-negative integers"),
    "shape type": ({"a": A | {"shape": 1}}, 4, "non-negative integers"),
    "overflowing shape": ({"a": A | {"shape": [1 << 40, 1 << 40]}}, 4, "more than 2"),
    "long overflow": ({"a": A | {"shape": [1 << 61] * 300}}, 4, "more than 2"),
    "negative offset": ({"a": A | {"data_offsets": [-4, 0]}}, 4, "data_offsets must"),
    "reversed offsets": ({"a": A | {"data_offsets": [4, 0]}}, 4, "data_offsets must"),
    "one offset": ({"a": A | {"data_offsets": [4]}}, 4, "data_offsets must"),
    "shape and bytes": ({"a": A | {"shape": [2]}}, 4, r"F32 \[2\] takes 8 bytes, its data_offsets \[0, 4\] span 4"),
    "bytes and shape": ({"a": A | {"data_offsets": [0, 8]}}, 8, r"takes 4 bytes, its data_offsets \[0, 8\] span 8"),
    "overlap": ({"a": A, "b": entry("F32", (1,), 2)}, 6, "'b' overlaps 'a'"),
    "hole": ({"a": A, "b": entry("F32", (1,), 8)}, 12, "'b' leaves a hole after 'a'"),
    "hole in front": ({"a": entry("F32", (1,), 4)}, 8, "'a' leaves a hole after the header"),
    "stray bytes": ({"a": A}, 5, "stray bytes at its end"),
}


@pytest.mark.parametrize(("header", "data", "says"), BAD.values(), ids=BAD)
def test_bad_headers_are_named_and_refused_by_the_library_too(tmp_path: Path, header, data: int, says: str) -> None:
    file = write_raw(tmp_path / "x.safetensors", header, bytes(data))
    with pytest.raises(InputError, match=says) as caught:
        read_header(file)
    assert all(str(file) in problem and len(problem) < 1000 for problem in caught.value.problems)
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(file.read_bytes())


def test_a_cut_off_file_names_expected_and_actual_size(tmp_path: Path) -> None:
    file = write_file(tmp_path / "x.safetensors", {"a": ("F32", (100,))})
    whole = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(InputError, match=f"describes {whole} bytes, the file has {whole - 7}: it is cut off"):
        read_header(file)


def test_all_problems_of_a_file_come_at_once_but_no_more_than_can_be_read(tmp_path: Path) -> None:
    two = write_raw(tmp_path / "x", {"a": A | {"dtype": "X"}, "b": A | {"shape": [-1]}}, bytes(4))
    assert len(read_or_problems(two)) == 2
    many = write_raw(tmp_path / "y", {f"t{i}": A | {"dtype": "X"} for i in range(300)}, bytes(4))
    assert read_or_problems(many)[-1] == "… and 290 more like the last"
    assert len(read_or_problems(many)) == 11


def test_a_hostile_shape_costs_no_time(tmp_path: Path) -> None:
    """The whole product of 100,000 large extents takes some 20 s; a bounded one milliseconds."""
    extents = b",".join([b"2305843009213693952"] * 100_000)
    header = b'{"a":{"dtype":"F32","shape":[' + extents + b'],"data_offsets":[0,4]}}'
    file = write_raw(tmp_path / "x.safetensors", header, bytes(4))
    begin = time.process_time()
    with pytest.raises(InputError, match="more than 2"):
        read_header(file)
    assert time.process_time() - begin < 5


def test_a_name_that_occurs_twice_among_many_costs_no_time(tmp_path: Path) -> None:
    """Looked for by counting each name, it takes minutes."""
    entries = ",".join(f'"{i}":{json.dumps(entry("U8", (0,)))}' for i in [*range(100_000), 99_999])
    file = write_raw(tmp_path / "x.safetensors", f"{{{entries}}}".encode(), b"")
    begin = time.process_time()
    with pytest.raises(InputError, match="'99999' occurs twice"):
        read_header(file)
    assert time.process_time() - begin < 20


@pytest.mark.parametrize(
    "header",
    [{"a": A | {"more": 1}}, {"__metadata__": None, "a": A}, {"a": A | {"dtype": "U32"}}, {"ä/😀": A}],
    ids=["unknown field", "null metadata", "another dtype", "any name"],
)
def test_what_the_library_reads_is_read(tmp_path: Path, header) -> None:
    file = write_raw(tmp_path / "x.safetensors", header, bytes(4))
    assert set(read_header(file).tensors) == {name for name, _ in safetensors.deserialize(file.read_bytes())}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
DIM = st.integers(-1, 4) | st.integers(0, 1 << 64)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES, "F4", ""]) | JSON,
        "shape": st.lists(DIM, max_size=4) | JSON,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | JSON,
    }
)
NAMES = st.text(st.characters(), max_size=4)  # halves of surrogate pairs too
HEADERS = st.one_of(
    st.binary(max_size=60),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(NAMES | st.just("__metadata__"), ENTRY | JSON, max_size=3).map(lambda h: json.dumps(h).encode()),
)


@settings(max_examples=400)
@given(st.binary(max_size=80))
def test_any_bytes_give_a_header_or_an_input_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    file.write_bytes(content)
    read_or_problems(file)


@settings(max_examples=400)
@given(HEADERS, st.binary(max_size=40))
def test_any_header_gives_a_header_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, header: bytes, data: bytes
) -> None:
    """And never one that the safetensors library refuses."""
    file = write_raw(tmp_path_factory.getbasetemp() / "fuzz.safetensors", header, data)
    result = read_or_problems(file)
    if isinstance(result, Header):
        assert {name for name, _ in safetensors.deserialize(file.read_bytes())} == set(result.tensors)
    else:
        assert result


TENSORS = st.lists(
    st.tuples(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda n: n != "__metadata__"),
        st.sampled_from(sorted(DTYPES)),
        st.lists(st.integers(0, 4), max_size=3).map(tuple),
    ),
    max_size=6,
    unique_by=lambda tensor: tensor[0],
)


@given(TENSORS, st.sampled_from([1, 8, 64, 4096]))
def test_written_headers_are_read_back_by_us_and_by_the_library(
    tmp_path_factory: pytest.TempPathFactory, tensors, align: int
) -> None:
    header, spans = write_header(tensors, {"format": "pt", "b": "2"}, align)
    assert len(header) % align == 0
    nbytes = sum(math.prod(shape) * DTYPES[dtype] for _, dtype, shape in tensors)
    content = header + bytes(i % 251 for i in range(nbytes))
    file = tmp_path_factory.getbasetemp() / "written.safetensors"
    file.write_bytes(content)

    ours = read_header(file)
    assert {n: (t.dtype, t.shape, t.start, t.stop) for n, t in ours.tensors.items()} == {
        name: (dtype, shape, *spans[name]) for name, dtype, shape in tensors
    }
    assert ours.metadata == {"format": "pt", "b": "2"}
    theirs = dict(safetensors.deserialize(content))
    assert {n: (t["dtype"], tuple(t["shape"])) for n, t in theirs.items()} == {n: (d, s) for n, d, s in tensors}
    for name, (start, stop) in spans.items():
        assert bytes(theirs[name]["data"]) == content[start:stop]


def test_headers_are_written_the_same_whatever_the_order_of_metadata() -> None:
    tensors = [("z", "F32", (2,)), ("a", "BF16", (3,))]
    assert write_header(tensors, {"a": "1", "b": "2"}) == write_header(tensors, {"b": "2", "a": "1"})


@pytest.mark.parametrize(("count", "listed"), [(0, 0), (1, 1), (10, 10), (11, 11), (300, 11)])
def test_limited_words_ten_problems_and_counts_the_rest(count: int, listed: int) -> None:
    worded: list[int] = []
    result = limited(range(count), lambda i: worded.append(i) or f"problem {i}")
    assert len(result) == listed
    assert worded == list(range(min(count, 10)))
    assert count <= 10 or result[-1] == f"… and {count - 10} more like the last"


def test_reading_headers_loads_no_heavy_library() -> None:
    code = (
        "import sys, fastmerge.formats.checkpoint, fastmerge.formats.layout, fastmerge.recipe.preflight;"
        "print(sorted({'torch', 'numpy', 'safetensors', 'huggingface_hub', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
