"""Checkpoints on disk: what Hugging Face libraries write opens; everything else is refused, all problems at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from checkpoints import write_file, write_folder, write_index, write_raw, write_sharded

from fastmerge.errors import InputError
from fastmerge.formats import checkpoint
from fastmerge.formats.checkpoint import open_checkpoint

A, B = {"a": ("F32", (2,))}, {"b": ("F32", (3,))}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def problems_of(path: Path | str) -> list[str]:
    with pytest.raises(InputError) as caught:
        open_checkpoint(path, "math")
    problems = caught.value.problems
    assert problems
    assert all(problem.startswith("math: ") for problem in problems), "every problem names the model, once"
    assert not any(problem.startswith("math: math: ") for problem in problems)
    return problems


@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model", "adapter_model", "my_weights"])
def test_a_folder_with_one_file_opens(tmp_path: Path, stem: str) -> None:
    write_file(tmp_path / f"{stem}.safetensors", A | B)
    opened = open_checkpoint(tmp_path, "math")
    assert (list(opened.tensors), opened.label, opened.config, opened.notes) == (["a", "b"], "math", {}, ())


@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model"])
def test_a_sharded_folder_opens_in_the_order_of_its_shards(tmp_path: Path, stem: str) -> None:
    opened = open_checkpoint(write_sharded(tmp_path / "m", B, A, stem=stem), "math")
    assert [(t.name, t.file.name) for t in opened.tensors.values()] == [
        ("b", f"{stem}-00001-of-00002.safetensors"),
        ("a", f"{stem}-00002-of-00002.safetensors"),
    ]
    assert len(opened.headers) == 2


def test_a_file_opens_without_a_folder(tmp_path: Path) -> None:
    assert list(open_checkpoint(str(write_file(tmp_path / "x.safetensors", A)), "math").tensors) == ["a"]


def test_config_is_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", A, {"tie_word_embeddings": True})
    assert open_checkpoint(folder, "math").config == {"tie_word_embeddings": True}


def test_identity_is_the_same_wherever_the_checkpoint_lies(tmp_path: Path) -> None:
    first = write_sharded(tmp_path / "here", A, B)
    second = shutil.copytree(first, tmp_path / "there")
    other = write_sharded(tmp_path / "other", A, {"c": ("F32", (3,))})
    one, two, three = (open_checkpoint(folder, "math").identity() for folder in (first, second, other))
    assert one == two != three
    assert str(tmp_path) not in json.dumps(one)
    assert [entry["file"] for entry in one] == list(SHARDS)


def test_links_to_blobs_work_as_in_the_hub_cache(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name, tensors in zip(SHARDS, (A, B), strict=True):
        write_file(blobs / f"hash-of-{name}", tensors)
        (snapshot / name).symlink_to(f"../../blobs/hash-of-{name}")
    write_index(snapshot, {"a": SHARDS[0], "b": SHARDS[1]})
    opened = open_checkpoint(snapshot, "math")
    assert [header.file.name for header in opened.headers] == list(SHARDS)


def test_stray_files_are_ignored_with_a_note(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "m", A, B)
    write_raw(folder / "consolidated.safetensors", b"damaged, but nobody's")
    opened = open_checkpoint(folder, "math")
    assert list(opened.tensors) == ["a", "b"]
    assert "consolidated.safetensors" in opened.notes[0]


def test_a_single_file_counts_before_an_index_as_in_transformers(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "m", A, B)
    write_file(folder / "model.safetensors", {"c": ("F32", (1,))})
    opened = open_checkpoint(folder, "math")
    assert list(opened.tensors) == ["c"]
    assert all(name in opened.notes[0] for name in SHARDS)


def test_tensors_that_the_index_does_not_list_are_ignored_with_a_note(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "m", A, B | {"more": ("F32", (1,))})
    write_index(folder, {"a": SHARDS[0], "b": SHARDS[1]})
    opened = open_checkpoint(folder, "math")
    assert list(opened.tensors) == ["a", "b"]
    assert "more" in opened.notes[0]


@pytest.mark.parametrize(
    ("weight_map", "says"),
    [
        ({"a": SHARDS[0], "b": "model-00003-of-00003.safetensors"}, "lists model-00003-of-00003.safetensors, which is"),
        ({"a": SHARDS[1], "b": SHARDS[0]}, f"says that 'b' is in {SHARDS[0]}; it is in {SHARDS[1]}"),
        ({"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]}, "'c' is in .*; it is in none that it lists"),
        ({"a": "../m/" + SHARDS[0]}, "points to"),
        ({"a": "/etc/x.safetensors"}, "points to"),
        ({"a": ".."}, "points to"),
        ({"a": "sub\\x.safetensors"}, "points to"),
        ({"a": "config.json"}, "points to"),
        ({"a": 1}, "points to '1'"),
        ({"a": "\0.safetensors"}, "which is missing"),
        ({"a": "b" * 300 + ".safetensors"}, "which is missing"),
        ({}, "has no weight_map"),
        ([SHARDS[0]], "has no weight_map"),
    ],
    ids=[
        "missing shard", "wrong shard", "no shard", "up", "absolute", "parent", "backslash", "no safetensors", "number",
        "NUL", "long", "empty", "list",
    ],
)  # fmt: skip
def test_a_wrong_index_is_refused(tmp_path: Path, weight_map, says: str) -> None:
    folder = write_sharded(tmp_path / "m", A, B)
    write_index(folder, weight_map)
    with pytest.raises(InputError, match=says):
        open_checkpoint(folder, "math")
    problems_of(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "m", A | {"c": ("F32", (1,))}, A | B)
    (problem,) = problems_of(folder)
    assert all(word in problem for word in ("'a'", *SHARDS))


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "m", A, B)
    (folder / SHARDS[0]).write_bytes((folder / SHARDS[0]).read_bytes()[:-1])
    (folder / SHARDS[1]).unlink()
    (folder / "config.json").write_text("{")
    problems = problems_of(folder)
    assert len(problems) == 3
    for problem, word in zip(problems, (SHARDS[1], SHARDS[0], "config.json"), strict=True):
        assert word in problem


def test_many_wrong_entries_are_not_all_listed(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "m", A, B)
    write_index(folder, {f"t{i}": SHARDS[i % 2] for i in range(300)})
    problems = problems_of(folder)
    assert len(problems) == 11
    assert "290 more" in problems[-1]


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 200_000], ids=["cut off", "list", "bytes", "deep"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_malformed_json_is_a_problem(tmp_path: Path, name: str, content: bytes) -> None:
    folder = write_sharded(tmp_path / "m", A, B)
    (folder / name).write_bytes(content)
    (problem,) = problems_of(folder)
    assert name in problem


def test_huge_json_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "m", A, {"a": "x" * 100})
    monkeypatch.setattr(checkpoint, "JSON_LIMIT", 100)
    assert "larger than 100 bytes" in problems_of(folder)[0]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
@pytest.mark.parametrize("whole_folder", [True, False], ids=["folder", "file"])
def test_pickles_are_not_opened_and_the_way_out_is_said(tmp_path: Path, name: str, whole_folder: bool) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    (problem,) = problems_of(tmp_path if whole_folder else tmp_path / name)
    assert name in problem
    assert "save_pretrained" in problem


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no *.safetensors" in problems_of(tmp_path / "empty")[0]
    write_folder(tmp_path / "hollow", {})
    assert "holds no tensors" in problems_of(tmp_path / "hollow")[0]
    for name in ("x", "y"):
        write_file(tmp_path / f"{name}.safetensors", A)
    (problem,) = problems_of(tmp_path)
    assert "x.safetensors, y.safetensors" in problem


@pytest.mark.parametrize(
    "path",
    ["/nowhere/model", "./nowhere", "nowhere", "a/b/c", "~nobody-of-that-name/model", "a" * 5000, "\0", ""],
    ids=["absolute", "relative", "bare", "deep", "home", "long", "NUL", "empty"],
)
def test_paths_that_lead_nowhere_ask_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "find", lambda *_: pytest.fail("asked the Hub"))
    problems_of(path)


def test_a_missing_folder_beside_others_is_no_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "find", lambda *_: pytest.fail("asked the Hub"))
    assert "runs/last does not exist" in problems_of("runs/last")[0]
