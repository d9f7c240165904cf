"""The command line: exit codes, one clear error each for bad input, JSON for programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import run
from experts import experts_folder
from folders import family, near, read, state, write

from fastmerge.recipe import destination

Change = Callable[[Path], list[str]]


def models(root: Path) -> list[str]:
    return ["--base", str(root / "base"), "--model", f"a={root / 'm0'}", "--model", f"b={root / 'm1'}"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    family(tmp_path, 2)
    return tmp_path


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    tensors = change(read(folder))
    shutil.rmtree(folder)
    write(folder, tensors)


def missing(root: Path) -> list[str]:
    rewrite(root / "m1", lambda t: {n: x for n, x in t.items() if n != "norm.weight"})
    return ["b", "'norm.weight'", "missing"]


def longer_vocabulary(root: Path) -> list[str]:
    grown = {n.replace("embed", "embed_tokens"): x for n, x in state(0).items()}
    rewrite(root / "base", lambda _: grown)
    rewrite(root / "m0", lambda _: near(grown, 1))
    rewrite(root / "m1", lambda _: near(grown, 2) | {"embed_tokens.weight": torch.zeros(51, 8).bfloat16()})
    return ["b", "'embed_tokens.weight'", "[51, 8]", "[50, 8]", "vocabulary"]


def prefixed(root: Path) -> list[str]:
    rewrite(root / "m1", lambda t: {f"_orig_mod.{n}": x for n, x in t.items()})
    return ["b", "--rename b:_orig_mod.="]


def truncated(root: Path) -> list[str]:
    file = root / "m1" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return ["b", "model.safetensors", "cut off"]


def absurd_header(root: Path) -> list[str]:
    file = root / "m1" / "model.safetensors"
    file.write_bytes((1 << 60).to_bytes(8, "little") + file.read_bytes()[8:])
    return ["b", "model.safetensors", "header"]


def raw(root: Path, offsets: list[list[int]]) -> None:
    entries = {f"t{i}": {"dtype": "U8", "shape": [b - a], "data_offsets": [a, b]} for i, (a, b) in enumerate(offsets)}
    text = json.dumps(entries).encode()
    (root / "m1" / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))


def overlapping(root: Path) -> list[str]:
    raw(root, [[0, 10], [6, 16]])
    return ["b", "'t1'", "overlaps"]


def out_of_file(root: Path) -> list[str]:
    raw(root, [[0, 10], [10, 99]])
    return ["b", "model.safetensors", "cut off"]


def escaping_index(root: Path) -> list[str]:
    (root / "m1" / "model.safetensors").rename(root / "elsewhere.safetensors")
    index = {"weight_map": dict.fromkeys(state(0), "../elsewhere.safetensors")}
    (root / "m1" / "model.safetensors.index.json").write_text(json.dumps(index))
    return ["b", "../elsewhere.safetensors", "folder"]


def pickled(root: Path) -> list[str]:
    (root / "m1" / "model.safetensors").unlink()
    torch.save({}, root / "m1" / "pytorch_model.bin")
    return ["b", "pytorch_model.bin", "save_pretrained"]


def unmatched_head(root: Path) -> list[str]:
    rewrite(root / "m1", lambda t: t | {"classifier.weight": torch.zeros(2, 8)})
    return ["b", "'classifier.weight'", "--task-specific"]


def eight_bits(root: Path) -> list[str]:
    rewrite(root / "m1", lambda t: t | {"norm.weight": t["norm.weight"].to(torch.float8_e4m3fn)})
    return ["b", "'norm.weight'", "F8_E4M3"]


def absent(root: Path) -> list[str]:
    shutil.rmtree(root / "m1")
    return ["b", "does not exist"]


CHANGES: list[Change] = [
    missing,
    longer_vocabulary,
    prefixed,
    truncated,
    absurd_header,
    overlapping,
    out_of_file,
    escaping_index,
    pickled,
    unmatched_head,
    eight_bits,
    absent,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("command", ["plan", "merge"])
def test_bad_checkpoints(command: str, change: Change, root: Path) -> None:
    """Exit code 2, one error that names model, file or tensor and what to do, no traceback, nothing written."""
    expected = change(root)
    before = sorted(root.rglob("*"))
    code, _, error = run(command, "emr", *models(root), "--out", root / "out")
    assert code == 2
    assert error.count("error:") == 1, error
    for part in expected:
        assert part in error
    assert "Traceback" not in error
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["emrr"], "did you mean 'emr'"),
        (["emr", "-p", "rescal=global"], "did you mean 'rescale'"),
        (["emr", "-p", "rescale"], "expected NAME=VALUE"),
        (["emr", "--model", "a=again"], "called 'a'"),
        (["emr", "--model", "../x=again"], "model name '../x'"),
        (["emr", "--dtype", "bfloat"], "did you mean 'bfloat16'"),
        (["emr", "--memory", "lots"], "memory 'lots'"),
        (["emr", "--memory", "9" * 400], "expected a size"),
        (["emr", "--memory", "10kB"], "needs at least"),
        (["emr", "--device", "cuda"], "device 'cuda'"),
        (["emr", "--rename", "c:x=y"], "there is no model 'c'"),
        (["emr", "--task-specific", "hed.*"], "'hed.*' matches no tensor"),
    ],
)
def test_bad_arguments(arguments: list[str], said: str, root: Path) -> None:
    code, _, error = run("merge", *arguments, *models(root), "--out", root / "out")
    assert code == 2
    assert said in error
    assert not (root / "out").exists()


def test_all_problems_at_once(root: Path) -> None:
    truncated(root)
    (root / "out").mkdir()
    wrong = ["-p", "x=1", "--dtype", "int8", "--memory", "x", "--device", "tpu"]
    code, _, error = run("merge", "emr", *models(root), "--out", root / "out", *wrong)
    assert code == 2
    assert error.count("error:") == 6  # with the damaged file, and the output that is there
    code, _, error = run("merge", "emr", *models(root), "--out", root / "out", *wrong, "-p", "y", "--model", "x")
    assert (code, error.count("error:")) == (2, 8)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ["merge", "fr", "BASE", "--out", "OUT", "-p", "cutoff=0.3", "-p", "targets=x", "--memory", "1"],
            ["targets", "memory 1 bytes", "exists already"],
        ),
        (["run", "RECIPE", "--device", "tpu"], ["scal", "x/base", "x/m does not", "'tpu'", "--out DIR"]),
        (
            ["run", "RECIPE", "--out", "OUT", "--memory", "x"],
            ["scal", "x/base", "x/m does not", "'x'", "exists already"],
        ),
        (["run", "CONFIG", "--out", "OUT"], ["densty", "x/base", "x/m", "exists already"]),
        (["diff", "nowhere", "BASE", "--rename", "x"], ["--rename 'x'", "nowhere does not"]),
        (
            ["spectrum", "BASE", "nowhere", "--out", "a.pdf", "--cutoff", "-1", "--max-tensors", "-1"],
            ["a.png", "cutoff", "max_tensors", "nowhere does not"],
        ),
        (
            ["extract-lora", "BASE", "nowhere", "--out", "OUT", "--rank", "0", "--dtype", "x"],
            ["rank is 0", "dtype", "nowhere does not", "exists already"],
        ),
        (["task", "nowhere", "math", "--out", "OUT"], ["nowhere", "exists already"]),
        (
            ["plan", "ties", "BASE", "-p", "density=0.1", "-p", "density=0.2", "--dtype", "x"],
            ["-p density is given twice", "dtype"],
        ),
        (
            ["fw", "FW", "--out", "OUT", "--draw", "a.pdf"],
            ["a.png", "steps", "x/model", "x/m does", "skip_misfits", "x.jsonl", "exists already"],
        ),
    ],
    ids=lambda value: " ".join(value[:2]),
)
def test_problems_of_parameters_and_of_places_come_together(
    command: list[str], said: list[str], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "out").mkdir()
    recipe = {"method": "linear", "base": "x/base", "models": {"m": "x/m"}, "parameters": {"scal": 1}}
    config = {"merge_method": "ties", "base_model": "./x/base", "models": [{"model": "./x/m"}]}
    fw = {"model": "./x/model", "pool": ["./x/m"], "data": {"m": "x.jsonl"}, "loss": "causal_lm"}
    (root / "RECIPE").write_text(json.dumps(recipe))
    (root / "CONFIG").write_text(json.dumps(config | {"parameters": {"densty": 1}}))
    (root / "FW").write_text(json.dumps(fw | {"parameters": {"steps": -1}}))
    monkeypatch.chdir(root)
    (root / "x").mkdir()
    base = [str(root / "base")]
    if command[0] in ("merge", "plan"):
        base = [str(part) for part in models(root)]
    words = [part for word in command for part in (base if word == "BASE" else [word.replace("OUT", "out")])]
    code, _, error = run(*words)
    lines = [line for line in error.splitlines() if line.startswith("error:")]
    assert code == 2
    assert all(sum(text in line for line in lines) == 1 for text in said), error
    assert len(lines) == len(said), error


def test_existing_output(root: Path) -> None:
    (root / "out").mkdir()
    code, _, error = run("merge", "emr", *models(root), "--out", root / "out")
    assert (code, "exists already" in error) == (2, True)


def test_too_little_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destination.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))
    code, _, error = run("merge", "emr", *models(root), "--out", root / "out")
    assert (code, "make room" in error) == (2, True)


def test_nan_is_exit_code_one(root: Path) -> None:
    rewrite(root / "m1", lambda t: t | {"norm.weight": t["norm.weight"] * float("nan")})
    code, _, error = run("merge", "emr", *models(root), "--out", root / "out")
    assert code == 1
    assert "'norm.weight'" in error
    assert "b (8 of 8 values" in error
    assert sorted(p.name for p in root.iterdir()) == ["base", "m0", "m1"]


def test_renamed_prefix(root: Path) -> None:
    prefixed(root)
    code, _, error = run("merge", "linear", *models(root), "--rename", "b:_orig_mod.=", "--out", root / "out")
    assert code == 0, error


def test_json(root: Path) -> None:
    """Plans, reports, descriptions and errors as JSON alone on stdout."""
    code, out, _ = run("plan", "emr", *models(root), "--json")
    planned = json.loads(out)
    code, out, _ = run("merge", "emr", *models(root), "--out", root / "emr", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["bytes_read"] == planned["bytes_read"]
    written = [root / "emr" / name for name in planned["files"]]
    assert report["bytes_written"] == sum(f.stat().st_size for f in written)
    assert json.loads(run("info", root / "emr", "--json")[1])["kind"] == "EMR artefact"
    assert json.loads(run("task", root / "emr", "a", "--out", root / "t", "--json")[1])["models"] == ["a"]
    assert json.loads(run("info", root / "t", "--json")[1])["parameters"] == planned["parameters"]
    assert "reference" in json.loads(run("doctor", "--json")[1])["backends"]
    code, out, _ = run("merge", "emrr", *models(root), "--out", root / "x", "--json")
    assert (code, json.loads(out)["error"]) == (2, "InputError")


def test_experts(tmp_path: Path) -> None:
    """A folder of experts is described, and gives a task's model."""
    folder = experts_folder(tmp_path / "free", state(0), scales={"t1": 2.5})
    described = json.loads(run("info", folder, "--json")[1])
    assert (described["kind"], described["scales"]["t1"]) == ("experts", 2.5)
    assert set(described["bytes"]) == {"backbone", "t0", "t1", "t2"}
    assert "t1 2.5" in run("info", folder)[1]
    code, out, error = run("task", folder, "t1", "--out", tmp_path / "t1", "--json")
    assert code == 0, error
    assert json.loads(out)["bytes_read"] == described["bytes"]["backbone"] + described["bytes"]["t1"]
    code, _, error = run("task", folder, "t9", "--out", tmp_path / "t9")
    assert (code, error.count("error:"), "no task 't9'; did you mean" in error) == (2, 1, True)


def test_for_people(root: Path) -> None:
    """A summary on stdout; no bar where no terminal is."""
    code, out, error = run("merge", "emr", *models(root), "--out", root / "emr")
    assert (code, error) == (0, "")
    for part in ("GB/s", "rescalers", "written", "backend"):
        assert part in out
    assert "passes" in run("plan", "linear", *models(root))[1]


def test_verify(root: Path) -> None:
    """Exit code 0 where all is good, 1 where something differs, 2 where there is nothing to verify."""
    run("merge", "emr", *models(root), "--out", root / "emr", "--hash")
    code, out, error = run("verify", root / "emr", "--all")
    assert (code, error) == (0, "")
    assert "good" in out
    assert json.loads(run("verify", root / "emr", "--json")[1])["good"]
    file = root / "emr" / "unified.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    code, out, error = run("verify", root / "emr", "--all")
    assert code == 1
    assert "differ" in out
    assert error.count("differs:") == 2  # the hash, and the last tensor
    assert "unified.safetensors: tensor 'norm.weight'" in error
    code, out, _ = run("verify", root / "emr", "--all", "--json")
    assert (code, json.loads(out)["good"]) == (1, False)
    assert run("verify", root / "base")[0] == 2
    shutil.rmtree(root / "m1")
    code, _, error = run("verify", root / "emr")
    assert (code, "--model b=PATH" in error) == (2, True)
    assert run("verify", root / "emr", "--model", f"b={root / 'm0'}", "--all")[0] == 1


def test_diff(root: Path) -> None:
    """A table for people, the most changed first, and JSON with every number."""
    code, out, error = run("diff", root / "base", root / "m0", "--top", "2")
    assert (code, error) == (0, "")
    assert len(out.splitlines()) == 4
    found = json.loads(run("diff", root / "m0", root / "m1", "--base", root / "base", "--json")[1])
    assert {one["name"] for one in found["tensors"]} == set(state(0))
    assert 0 < found["total"]["same_sign"] < 1
    missing(root)
    code, _, error = run("diff", root / "m0", root / "m1")
    assert (code, "B: tensor 'norm.weight'" in error) == (2, True)


def test_a_reader_that_has_gone() -> None:
    """No traceback, and not the exit code of success."""
    command = [sys.executable, "-m", "fastmerge", "methods", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        running.stdout.close()
        _, error = running.communicate()
    assert running.returncode == 1
    assert "Traceback" not in error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_no_room_for_what_is_printed(options: list[str]) -> None:
    """One line instead of a traceback, and not the exit code of success."""
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "fastmerge", "methods", *options]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the output cannot be printed")
    assert len(done.stderr.splitlines()) == 1


def test_the_program_itself(root: Path) -> None:
    """As installed, in a process of its own."""
    program = Path(sys.executable).with_name("fastmerge")
    done = subprocess.run(
        [program, "merge", "linear", *models(root), "--out", root / "out"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(read(root / "out")) == set(state(0))


def test_a_path_that_cannot_be_printed(root: Path) -> None:
    """What is done is told all the same."""
    out = root / os.fsdecode(b"out\xe9")
    done = subprocess.run(
        [Path(sys.executable).with_name("fastmerge"), "merge", "linear", *models(root), "--out", out],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
    assert b"wrote" in done.stdout
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize("architectures", [3, "LlamaForCausalLM", {}, [1, None], []])
def test_strange_architectures(architectures: object, root: Path) -> None:
    (root / "base" / "config.json").write_text(json.dumps({"architectures": architectures}))
    code, out, error = run("info", root / "base", "--json")
    assert code == 0, error
    assert isinstance(json.loads(out)["architecture"], str)


def test_tables_where_no_terminal_is(tmp_path: Path) -> None:
    """A row is a line, however long, for what reads it."""
    name = ".".join(["layers"] * 60)
    tensors = {name: torch.ones(2, 2), "other": torch.ones(3)}
    a, b = write(tmp_path / "a", tensors), write(tmp_path / "b", near(tensors, 1))
    lines = run("diff", a, b)[1].splitlines()
    assert len(lines) == 4
    assert any(line.startswith(name) for line in lines)
