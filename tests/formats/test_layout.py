"""Output layouts: every tensor once, in order, without holes, in files named as Hugging Face names them."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmerge.formats.layout import plan_layout
from fastmerge.formats.safetensors import DTYPES, read_header

TENSORS = st.lists(
    st.tuples(st.sampled_from(["F32", "BF16", "U8"]), st.lists(st.integers(0, 6), max_size=2).map(tuple)), max_size=8
).map(lambda specs: [(f"t{i}", dtype, shape) for i, (dtype, shape) in enumerate(specs)])


def nbytes(tensor) -> int:
    return math.prod(tensor[2]) * DTYPES[tensor[1]]


@given(TENSORS, st.integers(1, 200))
def test_files_hold_all_tensors_in_order_within_the_limit(tmp_path_factory, tensors, limit: int) -> None:
    layout = plan_layout(tensors, limit=limit)
    folder = tmp_path_factory.mktemp("layout")
    found = []
    for file in layout.files:
        (folder / file.name).write_bytes(file.header + bytes(file.size - len(file.header)))
        stored = read_header(folder / file.name).tensors.values()
        assert sum(t.nbytes for t in stored) <= limit or sum(t.nbytes > 0 for t in stored) == 1
        for t in stored:
            place = layout.places[t.name]
            assert (place.file, place.start, place.stop) == (file.name, t.start, t.stop)
        found += [(t.name, t.dtype, t.shape) for t in stored]
    assert sorted(found) == sorted(tensors)
    assert [t for t in found if nbytes(t)] == [t for t in tensors if nbytes(t)]
    assert list(layout.places) == [name for name, _, _ in tensors]
    assert layout.total_bytes == sum((folder / file.name).stat().st_size for file in layout.files)


@given(TENSORS, st.integers(1, 200))
def test_an_index_is_written_exactly_where_there_are_shards(tensors, limit: int) -> None:
    layout = plan_layout(tensors, limit=limit)
    assert (layout.index is None) == (len(layout.files) == 1)
    if layout.index is not None:
        index = json.loads(layout.index)
        assert index["weight_map"] == {name: place.file for name, place in layout.places.items()}
        assert index["metadata"] == {"total_size": sum(map(nbytes, tensors))}


@pytest.mark.parametrize(
    ("sizes", "names"),
    [
        ([], ["model.safetensors"]),
        ([10], ["model.safetensors"]),
        ([5, 5], ["model.safetensors"]),
        ([5, 6], ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
        ([5, 6, 4], ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
        ([1, 50, 1], [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]),
    ],
    ids=["none", "one", "just full", "one byte more", "second just full", "one greater than the limit"],
)
def test_shards_are_named_and_filled_as_hugging_face_does(sizes: list[int], names: list[str]) -> None:
    layout = plan_layout([(f"t{i}", "U8", (n,)) for i, n in enumerate(sizes)], limit=10)
    assert [file.name for file in layout.files] == names
    assert layout.index_name == "model.safetensors.index.json"


def test_every_file_carries_the_metadata_and_format(tmp_path) -> None:
    layout = plan_layout(
        [("a", "U8", (9,)), ("b", "U8", (9,))], stem="x", limit=10, metadata={"fastmerge.method": "emr"}
    )
    assert len(layout.files) == 2
    for file in layout.files:
        (tmp_path / file.name).write_bytes(file.header + bytes(file.size - len(file.header)))
        assert read_header(tmp_path / file.name).metadata == {"format": "pt", "fastmerge.method": "emr"}


def test_layouts_are_the_same_to_the_byte() -> None:
    tensors = [("b", "F32", (3,)), ("a", "F32", (3,))]
    assert plan_layout(tensors, limit=12) == plan_layout(list(tensors), limit=12)
