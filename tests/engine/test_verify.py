"""Verifying a merged folder: what is good passes, and every change of inputs or outputs is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import lora, write_adapter
from folders import content, family, near, read, state, write
from verified import JOBS, flip, job, rewrite

import fastmerge as fm
from fastmerge.doctor import describe
from fastmerge.engine import remerge
from fastmerge.errors import InputError, MergeError, VerifyError
from fastmerge.formats import checkpoint, layout
from fastmerge.formats.safetensors import read_header
from fastmerge.recipe import outputs


@pytest.mark.parametrize("hashes", [False, True])
@pytest.mark.parametrize("name", JOBS)
def test_what_is_good(name: str, hashes: bool, tmp_path: Path) -> None:
    """Merged folders and EMR artefacts verify, sampled and whole, and stay as they are."""
    fm.merge(**job(name, tmp_path), out=tmp_path / "out", hashes=hashes)
    before = content(tmp_path / "out")
    for samples in (2, None):
        found = fm.verify(tmp_path / "out", samples=samples)
        assert not found.problems
        assert any("blocks" in check.what for check in found.checks)
        assert ("hashes" in [check.what for check in found.checks]) == hashes
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["linear", "emr", "base's heads"])
def test_hashes_are_added(name: str, tmp_path: Path) -> None:
    """Verifying with `hashes` gives the very folder that merging with them gives."""
    arguments = job(name, tmp_path)
    fm.merge(**arguments, out=tmp_path / "hashed" / "out", hashes=True)
    fm.merge(**arguments, out=tmp_path / "out")
    fm.verify(tmp_path / "out", hashes=True)
    assert content(tmp_path / "out") == content(tmp_path / "hashed" / "out")


def test_a_card_of_ones_own_is_kept(tmp_path: Path) -> None:
    fm.merge(**job("linear", tmp_path), out=tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("mine")
    fm.verify(tmp_path / "out", hashes=True)
    assert (tmp_path / "out" / "README.md").read_text() == "mine"


@pytest.mark.parametrize("hashes", [False, True])
@pytest.mark.parametrize(
    ("name", "file", "tensor", "byte"),
    [
        ("linear", "out/model.safetensors", "embed.weight", 419_999),
        ("linear", "out/model.safetensors", "ids", 3),
        ("emr", "out/unified.safetensors", "layers.0.weight", 5),
        ("emr", "out/masks.safetensors", "embed.weight", 30_000),
        ("heads", "out/tasks/m1/model.safetensors", "head.weight", 1),
        ("fr", "out/model.safetensors", "embed.weight", 419_999),
        ("free", "out/experts/m1.safetensors", "embed.weight/values", 4_000),
        ("free, heads", "out/experts/m2.safetensors", "layers.0.weight/offsets", 1),
        ("base's heads", "out/model.safetensors", "head.weight", 2),
    ],
)
def test_a_flipped_bit_in_an_output(name: str, file: str, tensor: str, byte: int, hashes: bool, tmp_path: Path) -> None:
    """Found by hashes, and without them by merging all again; the error names file and tensor."""
    fm.merge(**job(name, tmp_path), out=tmp_path / "out", hashes=hashes)
    flip(tmp_path / file, tensor, byte)
    with pytest.raises(VerifyError) as caught:
        fm.verify(tmp_path / "out", samples=None)
    assert Path(file).name in str(caught.value)
    assert f"tensor {tensor!r} is not what its inputs give (first at byte {byte:,})" in str(caught.value)
    assert ("its hash is not the recorded one" in str(caught.value)) == hashes


@pytest.mark.parametrize("name", ["linear", "emr"])
@pytest.mark.parametrize("hashes", [False, True])
def test_a_flipped_bit_in_an_input(name: str, hashes: bool, tmp_path: Path) -> None:
    """A changed weight shows in its blocks; the sign's bit, so that it is more than rounding."""
    fm.merge(**job(name, tmp_path), out=tmp_path / "out", hashes=hashes)
    flip(tmp_path / "m1" / "model.safetensors", "layers.0.weight", 1)
    with pytest.raises(VerifyError, match=r"'layers\.0\.weight'") as caught:
        fm.verify(tmp_path / "out", samples=None)
    assert ("m1/model.safetensors: has changed" in str(caught.value)) == hashes


def another_dtype(root: Path) -> str:
    wide = {name: t.float() if t.is_floating_point() else t for name, t in read(root / "m1").items()}
    shutil.rmtree(root / "m1")
    write(root / "m1", wide)
    return r"m1: .* is not what was merged"


def an_input_less_a_tensor(root: Path) -> str:
    fewer = {name: t for name, t in read(root / "m2").items() if name != "norm.weight"}
    shutil.rmtree(root / "m2")
    write(root / "m2", fewer)
    return r"m2: .* is not what was merged"


def a_file_cut_off(root: Path) -> str:
    file = root / "out" / "unified.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    return r"unified\.safetensors: .*cut off"


def a_file_gone(root: Path) -> str:
    (root / "out" / "masks.safetensors").unlink()
    return r"masks\.safetensors: cannot be read"


def another_file(root: Path) -> str:
    shutil.copy(root / "out" / "masks.safetensors", root / "out" / "unified.safetensors")
    return r"unified\.safetensors: has another size or header"


def another_rescaler(root: Path) -> str:
    rewrite(root / "out" / "emr.json", lambda record: record["rescalers"].__setitem__(1, 2.0))
    return "rescalers are"


def another_sum(root: Path) -> str:
    rewrite(root / "out" / "emr.json", lambda r: r["tensors"]["norm.weight"]["kept"].__setitem__(0, 2.0))
    return r"sums of tensor 'norm\.weight'"


def another_parameter(root: Path) -> str:
    rewrite(root / "out" / "fastmerge.json", lambda r: r.update(method="magmax", params={"modulators": True}))
    return "is not what its inputs give|laid out otherwise"


@pytest.mark.parametrize(
    "change",
    [
        another_dtype,
        an_input_less_a_tensor,
        a_file_cut_off,
        a_file_gone,
        another_file,
        another_rescaler,
        another_sum,
        another_parameter,
    ],
    ids=lambda c: c.__name__,
)
def test_other_changes(change: Callable[[Path], str], tmp_path: Path) -> None:
    fm.merge(**job("emr", tmp_path), out=tmp_path / "out")
    said = change(tmp_path)
    with pytest.raises(VerifyError, match=said):
        fm.verify(tmp_path / "out", samples=None, hashes=True)
    assert "sha256" not in json.loads((tmp_path / "out" / "fastmerge.json").read_text())["files"][0]


def test_a_nan_that_came_in(tmp_path: Path) -> None:
    """An input that cannot be merged any more is a difference, not a crash."""
    fm.merge(**job("linear", tmp_path), out=tmp_path / "out")
    file = tmp_path / "m1" / "model.safetensors"
    data = bytearray(file.read_bytes())
    start = read_header(file).tensors["norm.weight"].start
    data[start : start + 2] = b"\xff\xff"
    file.write_bytes(data)
    with pytest.raises(VerifyError, match=r"'norm\.weight': NaN .* m1"):
        fm.verify(tmp_path / "out", samples=None)


def test_moved_inputs(tmp_path: Path) -> None:
    """Gone inputs are bad input that says how to name the new place; named, they serve."""
    fm.merge(**job("linear", tmp_path), out=tmp_path / "out")
    (tmp_path / "m1").rename(tmp_path / "moved")
    (tmp_path / "base").rename(tmp_path / "origin")
    with pytest.raises(InputError) as caught:
        fm.verify(tmp_path / "out")
    assert "--model m1=PATH" in str(caught.value)
    assert "--base PATH" in str(caught.value)
    fm.verify(tmp_path / "out", base=tmp_path / "origin", models={"m1": tmp_path / "moved"})
    with pytest.raises(InputError, match="no input is called 'm11'; did you mean 'm1'"):
        fm.verify(tmp_path / "out", models={"m11": tmp_path / "moved"})


def test_no_merged_folder(tmp_path: Path) -> None:
    base, _ = family(tmp_path)
    for folder in (base, tmp_path / "absent"):
        with pytest.raises(InputError, match=r"has no fastmerge\.json"):
            fm.verify(folder)
    (base / "fastmerge.json").write_text('{"format": "fastmerge.merge", "version": 9}')
    with pytest.raises(InputError, match="version"):
        fm.verify(base)


def test_several_outputs(tmp_path: Path) -> None:
    """The folder of all, and each for itself; a change in one is named."""
    outputs = {"half": {"scale": 0.5}, "whole": {}}
    fm.merge(**job("linear", tmp_path) | {"method": "task_arithmetic"}, out=tmp_path / "out", outputs=outputs)
    assert len(fm.verify(tmp_path / "out").checks) == 2 * len(fm.verify(tmp_path / "out" / "half").checks)
    flip(tmp_path / "out" / "half" / "model.safetensors", "norm.weight")
    fm.verify(tmp_path / "out" / "whole", samples=None)
    with pytest.raises(VerifyError, match=r"half/model\.safetensors"):
        fm.verify(tmp_path / "out", samples=None)


def test_all_that_cannot_be_verified_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several outputs and the options, before a file is hashed."""
    outputs = {name: {"scale": 0.5} for name in ("a", "b", "c")}
    fm.merge(
        **job("linear", tmp_path) | {"method": "task_arithmetic"}, out=tmp_path / "out", outputs=outputs, hashes=True
    )
    monkeypatch.delattr(fm.engine.verify, "hash_files")
    (tmp_path / "m1").rename(tmp_path / "moved")
    (tmp_path / "out" / "c" / "fastmerge.json").write_text("{")
    with pytest.raises(InputError) as caught:
        fm.verify(tmp_path / "out", memory="lots")
    assert [text.partition(":")[0].rpartition("/")[2] for text in caught.value.problems] == [
        "memory 'lots'",
        "m1",
        "fastmerge.json",
    ]


def test_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many blocks as asked for are read, the same ones for one seed, and all in the end for some seed."""
    fm.merge(**job("emr", tmp_path), out=tmp_path / "out")
    monkeypatch.setattr(remerge, "SAMPLE", 65_536)
    read_bytes: list[int] = []
    whole = fm.verify(tmp_path / "out", samples=None, progress=read_bytes.append)
    everything, seen = sum(read_bytes), set()
    for seed in range(20):
        read_bytes.clear()
        fm.verify(tmp_path / "out", samples=2, seed=seed, progress=read_bytes.append)
        assert len(read_bytes) == 2
        assert sum(read_bytes) < everything
        first = list(read_bytes)
        read_bytes.clear()
        fm.verify(tmp_path / "out", samples=2, seed=seed, progress=read_bytes.append)
        assert read_bytes == first
        seen |= {*first}
    assert len(seen) > 3
    assert not whole.problems


def test_errors_are_merge_errors(tmp_path: Path) -> None:
    """A difference is a MergeError that carries all checks, good and bad."""
    fm.merge(**job("linear", tmp_path), out=tmp_path / "out")
    flip(tmp_path / "out" / "model.safetensors", "norm.weight")
    with pytest.raises(MergeError) as caught:
        fm.verify(tmp_path / "out", samples=None)
    assert caught.value.exit_code == 1
    assert isinstance(caught.value, VerifyError)
    assert [bool(check.problems) for check in caught.value.verification.checks] == [False, False, True]


@pytest.mark.parametrize("change", ["gone", "other", "good"])
@pytest.mark.parametrize("name", ["linear", "emr"])
def test_an_index(name: str, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are found by it: one that is missing, or says something else, is a difference."""
    monkeypatch.setattr(outputs, "SHARD_LIMIT", 1000)
    monkeypatch.setattr(layout.plan_layout, "__defaults__", ("model", 1000, None, ""))
    fm.merge(**job(name, tmp_path), out=tmp_path / "out")
    index = next((tmp_path / "out").glob("*.index.json"))
    if change == "good":
        assert not fm.verify(tmp_path / "out").problems
        return
    if change == "gone":
        index.unlink()
    else:
        rewrite(index, lambda content: content["weight_map"].popitem())
    with pytest.raises(VerifyError, match=index.name):
        fm.verify(tmp_path / "out", samples=1)


def test_memory(tmp_path: Path) -> None:
    """As much as the merge was given, where that is not the default."""
    fm.merge(**job("linear", tmp_path), out=tmp_path / "out")
    with pytest.raises(InputError, match=r"needs at least .*; pass --memory"):
        fm.verify(tmp_path / "out", memory="10kB")
    assert not fm.verify(tmp_path / "out", memory="3GiB").problems


def test_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where inputs lie is recorded in full, an adapter's model too: from elsewhere they are found again."""
    base = state(0, torch.float32)
    write(tmp_path / "a" / "base", base)
    write(tmp_path / "a" / "m", near(base, 1))
    write_adapter(tmp_path / "a" / "lora", lora({"layers.0": (33, 8)}, 4, 1))
    monkeypatch.chdir(tmp_path / "a")
    fm.merge("emr", "base", {"m": "m", "l": "base+lora"}, "emr")
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    assert not fm.verify("../a/emr").problems
    fm.task("../a/emr", "l", "task")
    assert set(read(Path("task"))) == set(base)


def test_a_record_of_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As older releases wrote: what has no commit is no model of the Hub, and is not asked for there."""
    base, models = family(tmp_path, 1)
    fm.merge("emr", base, models, tmp_path / "out")
    for name in ("fastmerge.json", "emr.json"):
        rewrite(tmp_path / "out" / name, lambda record: record["base"].update(source="models/base"))
    monkeypatch.setattr(checkpoint, "find", None)
    with pytest.raises(InputError, match="base: models/base does not exist here; say where it is now by --base PATH"):
        fm.verify(tmp_path / "out")
    with pytest.raises(InputError, match="base: models/base does not exist here; say where it is now by --base"):
        fm.task(tmp_path / "out", "m0", tmp_path / "task")


def test_hashes_in_a_folder_that_is_closed(as_nobody: Path) -> None:
    fm.merge(**job("linear", as_nobody), out=as_nobody / "out")
    (as_nobody / "out").chmod(0o555)
    with pytest.raises(MergeError, match="hashes cannot be recorded: Permission denied"):
        fm.verify(as_nobody / "out", hashes=True)


def test_a_card_that_is_no_text(tmp_path: Path) -> None:
    fm.merge(**job("linear", tmp_path), out=tmp_path / "out")
    (tmp_path / "out" / "README.md").write_bytes(b"\xff")
    fm.verify(tmp_path / "out", hashes=True)
    assert (tmp_path / "out" / "README.md").read_bytes() == b"\xff"


@pytest.mark.parametrize("where", ["closed/out", "a" * 256])
@pytest.mark.parametrize(
    "look",
    [
        fm.verify,
        describe,
        lambda place: fm.task(place, "m0", "out"),
        lambda place: fm.merge("linear", None, {"a": place}, "out"),
    ],
    ids=["verify", "info", "task", "merge"],
)
def test_where_nothing_can_be_seen(look: Callable[[str], Any], where: str, as_nobody: Path) -> None:
    (as_nobody / "closed").mkdir(mode=0o000)
    with pytest.raises(InputError, match=r"(?i)(permission denied|file name too long)"):
        look(str(as_nobody / where))


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "~" is a user's own folder for every command."""
    base, models = family(tmp_path, 1)
    monkeypatch.setenv("HOME", str(tmp_path))
    fm.merge("emr", base, models, "~/emr")
    assert not fm.verify("~/emr").problems
    assert describe("~/emr")["kind"] == "EMR artefact"
    fm.task("~/emr", "m0", "~/task")
    assert (tmp_path / "task" / "model.safetensors").is_file()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_json_has_not(bad: float, tmp_path: Path) -> None:
    """Are null in records, and NaN when they are read."""
    base, models = family(tmp_path, 2)
    tensors = read(base)
    broken = read(models["m1"]) | {"norm.weight": tensors["norm.weight"] + torch.tensor(bad).bfloat16()}
    shutil.rmtree(models["m1"])
    write(models["m1"], broken)
    fm.merge("emr", base, models, tmp_path / "out", {"nonfinite": "allow"})
    for name in ("emr.json", "fastmerge.json"):
        json.loads((tmp_path / "out" / name).read_text(), parse_constant=pytest.fail)
    assert "null" in (tmp_path / "out" / "emr.json").read_text()
    assert not fm.verify(tmp_path / "out", samples=None).problems
    fm.task(tmp_path / "out", "m0", tmp_path / "task")
