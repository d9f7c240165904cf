"""Merges that are killed, stopped, or out of disk or input: no output or the whole one, and a clear end."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from folders import Patched, content, family, near, read, state, write
from stops import Stop, hidden
from typer.testing import CliRunner

import fastmerge as fm
from fastmerge import interrupts
from fastmerge.cli import app
from fastmerge.engine import merge, slots, stream, writer
from fastmerge.engine.journal import Journal
from fastmerge.errors import InputError, MergeError, ResumableError
from fastmerge.formats.mapping import Inputs
from fastmerge.recipe.destination import partial_folder
from fastmerge.recipe.plan import plan

pytestmark = pytest.mark.usefixtures("journal_every_tensor")


KILLED = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import torch
import fastmerge as fm
from fastmerge.engine import merge, state_dicts, task, writer

writer.SYNC_SECONDS = 0
base, models, out = json.loads(sys.argv[1])
out, random = Path(out), random.Random(0)

def start():
    child = os.fork()
    if child == 0:
        try:
            fm.merge("emr", base, models, out, memory="8MiB", resume=True)
            os._exit(0)
        except BaseException as error:
            print(repr(error))
            os._exit(1)
    return child

def content(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}

begin = time.monotonic()
assert os.waitpid(start(), 0)[1] == 0
took, expected = time.monotonic() - begin, content(out)
shutil.rmtree(out)
kills = resumed = 0
while kills < 20:
    child = start()
    time.sleep(random.uniform(0, took))
    os.kill(child, signal.SIGKILL)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    kills += killed
    resumed += killed and (out.parent / f".{out.name}.partial" / "journal").exists()
    if out.exists():
        assert content(out) == expected, "half an output, or other bytes"
        shutil.rmtree(out)
assert os.waitpid(start(), 0)[1] == 0
assert content(out) == expected, "other bytes"
print(resumed, sorted(os.listdir(out.parent)))
"""


def test_kill_at_random_moments(models: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    """kill -9, twenty times: no output or the whole, and in the end the bytes of an uninterrupted merge."""
    (tmp_path / "place").mkdir()
    job = json.dumps([str(models[0]), {k: str(v) for k, v in models[1].items()}, str(tmp_path / "place" / "out")])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, job], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    resumed, left = done.stdout.split(maxsplit=1)
    assert int(resumed) > 5
    assert left.strip() == "['out']"


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_signals(stop: signal.Signals, models: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    """At random moments, imports included: exit code 130 or 143, one line, no traceback, no output or the whole."""
    fm.merge("linear", None, models[1], tmp_path / "whole" / "out")
    expected, chance, codes = content(tmp_path / "whole" / "out"), random.Random(int(stop)), []
    named = [f"--model={name}={path}" for name, path in models[1].items()]
    command = [sys.executable, "-m", "fastmerge", "merge", "linear", *named, "--out", str(tmp_path / "out")]
    begin = time.monotonic()
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    took = time.monotonic() - begin
    for _ in range(4):
        if (tmp_path / "out").exists():
            assert content(tmp_path / "out") == expected
            shutil.rmtree(tmp_path / "out")
        with subprocess.Popen([*command, "--resume"], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as running:
            while running.poll() is None and not catches(running.pid, signal.SIGTERM):
                time.sleep(0.002)  # the interpreter's own start
            time.sleep(chance.uniform(0, 0.8) * took)
            running.send_signal(stop)
            _, error = running.communicate()
        codes.append(running.returncode)
        assert running.returncode in (0, 128 + stop, -stop), error  # the last is the interpreter's own end
        assert "Traceback" not in error
        assert error.startswith("stopped") == (running.returncode == 128 + stop)
    assert 128 + stop in codes


def catches(process: int, number: signal.Signals) -> bool:
    with suppress(FileNotFoundError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def open_files() -> Iterator[str]:
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing
            yield os.readlink(f"/proc/self/fd/{fd}")


@pytest.mark.parametrize("method", ["emr", "ties"])
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_merging(
    stop: signal.Signals,
    method: str,
    models: tuple[Path, dict[str, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line says how to go on; threads have ended, files are closed, and --resume goes on."""
    fm.merge(method, *models, tmp_path / "whole" / "out")
    sources, chunks = stream._sources, iter(range(100))

    def signalled(piece: stream.Piece, inputs: Inputs) -> list[torch.Tensor]:
        if next(chunks) == 9:
            os.kill(os.getpid(), stop)
        return sources(piece, inputs)

    monkeypatch.setattr(stream, "_sources", signalled)
    named = [f"--model={name}={path}" for name, path in models[1].items()]
    command = ["merge", method, "--base", str(models[0]), *named, "--out", str(tmp_path / "out")]
    handlers, threads = [signal.getsignal(s) for s in interrupts.SIGNALS], threading.active_count()
    stopped = CliRunner().invoke(app, command)
    assert stopped.exit_code == 128 + stop
    assert stopped.stderr == "stopped; the same command with --resume goes on from here\n"
    assert not (tmp_path / "out").exists()
    assert threading.active_count() == threads
    assert [signal.getsignal(s) for s in interrupts.SIGNALS] == handlers
    assert not any(".out.partial" in file for file in open_files())
    assert CliRunner().invoke(app, [*command, "--resume"]).exit_code == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole" / "out")


def test_a_full_disk(models: tuple[Path, dict[str, Path]], small_disk: Path, tmp_path: Path) -> None:
    """Full after preflight: one error that says so, no output; with room again the merge goes on."""
    fm.merge("linear", None, models[1], tmp_path / "whole" / "out")
    ready = plan("linear", None, models[1], small_disk / "out", memory="8MiB")
    filler = small_disk / "filler"
    filler.write_bytes(bytes(3_000_000))
    with pytest.raises(ResumableError, match="disk is full; make room and go on with --resume"):
        merge.execute(ready)
    assert not (small_disk / "out").exists()
    with pytest.raises(InputError, match="make room"):
        fm.merge("linear", None, models[1], small_disk / "out", resume=True)
    filler.unlink()
    fm.merge("linear", None, models[1], small_disk / "out", resume=True)
    assert content(small_disk / "out") == content(tmp_path / "whole" / "out")
    assert hidden(small_disk) == []


@pytest.mark.parametrize("room", [0, 70_000, 500_000])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_writing_fails(
    room: int,
    number: int,
    models: tuple[Path, dict[str, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the middle, on a file system that promises no room: no output, and what is on the disk need not be redone."""
    written = 0

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        nonlocal written
        written += len(data)
        if written > room:
            raise OSError(number, os.strerror(number))
        return os.pwrite(fd, data, offset)

    whole = fm.merge("linear", None, models[1], tmp_path / "whole" / "out")
    monkeypatch.setattr(slots, "os", Patched(os, pwrite=pwrite))
    said = "disk is full" if number != errno.EIO else "Input/output error"
    with pytest.raises(ResumableError, match=f"out: .*{said}.*--resume"):
        fm.merge("linear", None, models[1], tmp_path / "out", memory="8MiB")
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    report = fm.merge("linear", None, models[1], tmp_path / "out", resume=True)
    assert (report.bytes_read < whole.bytes_read) == (room == 500_000)
    assert content(tmp_path / "out") == content(tmp_path / "whole" / "out")


def test_a_failing_disk_is_not_believed(
    models: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors are finished once the disk has confirmed them; one that fails to once is not asked again."""
    failures = iter([OSError(errno.EIO, "Input/output error")])

    def fdatasync(fd: int) -> None:
        for failure in failures:
            raise failure

    monkeypatch.setattr(writer, "fdatasync", fdatasync)
    with pytest.raises(ResumableError):
        fm.merge("linear", None, models[1], tmp_path / "out")
    assert not Journal.read(partial_folder(tmp_path / "out") / "journal").finished  # type: ignore[union-attr]


def test_side_files_half_written(
    models: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies beside the weights is written anew."""
    fm.merge("emr", *models, tmp_path / "whole" / "out")

    def half(folder: Path) -> None:
        for name in ("config.json", "emr.json", "README.md", "tokenizer.json"):
            (folder / name).write_bytes(b"")
        raise Stop

    monkeypatch.setattr(merge, "write_side_files", lambda plan, output, folder, *_: half(folder))
    with pytest.raises(Stop):
        fm.merge("emr", *models, tmp_path / "out")
    monkeypatch.undo()
    fm.merge("emr", *models, tmp_path / "out", resume=True)
    assert content(tmp_path / "out") == content(tmp_path / "whole" / "out")


def test_what_cannot_be_mended_leaves_nothing(tmp_path: Path) -> None:
    base, models = family(tmp_path, 2)
    broken = read(models["m1"])
    broken["norm.weight"][3] = float("nan")
    models["m1"] = write(tmp_path / "broken", broken)
    with pytest.raises(MergeError, match="NaN"):
        fm.merge("linear", base, models, tmp_path / "out")
    assert hidden(tmp_path) == []


def test_inputs_that_change_while_they_are_merged(tmp_path: Path) -> None:
    base, models = family(tmp_path, 2)
    file = models["m0"] / "model.safetensors"
    with pytest.raises(MergeError, match=r"m0.*has changed"):
        fm.merge("linear", base, models, tmp_path / "out", progress=lambda _: os.utime(file, ns=(0, 0)))
    assert hidden(tmp_path) == []


CUT = """
import os, sys
import fastmerge as fm
from fastmerge.errors import MergeError

cuts = iter([True])


def cut(_):
    if next(cuts, False):
        os.truncate(f"{sys.argv[2]}/model.safetensors", os.path.getsize(f"{sys.argv[2]}/model.safetensors") // 2)


try:
    fm.merge("ties", sys.argv[1], {"m0": sys.argv[2], "m1": sys.argv[3]}, sys.argv[4], progress=cut, memory="12MB")
except MergeError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems end the process")
@pytest.mark.parametrize("large", [False, True], ids=["", "read ahead"])
def test_an_input_cut_short_while_it_is_merged(large: bool, tmp_path: Path) -> None:
    """One clear error, where reading what is gone would end the process; no output."""
    shapes = {f"layers.{i}.weight": (1000 if large else 100, 301) for i in range(16)}
    base = state(0, torch.bfloat16, shapes)
    folders = [write(tmp_path / name, near(base, k)) for k, name in enumerate(("base", "m0", "m1"))]
    command = [sys.executable, "-c", CUT, *map(str, folders), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("m0/model.safetensors: has changed since its header was read; start again\n")
    assert hidden(tmp_path) == []
    assert not (tmp_path / "out").exists()
