"""Live models copied and pickled."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from live import TASKS, Net, bits, emr, free, same
from tensors import BF16, F32
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastmerge as fm
from fastmerge.errors import InputError


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emr(tmp_path_factory.mktemp("emr"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return free(tmp_path_factory.mktemp("free"))


@pytest.mark.parametrize("resident", [False, True], ids=["plain", "resident"])
@pytest.mark.parametrize("kind", ["artefact", "folder"])
def test_a_copy_switches_for_itself(kind: str, resident: bool, request: pytest.FixtureRequest) -> None:
    """It begins with the bits of the first, of no task too, and neither changes the other, moved or not."""
    path = request.getfixturevalue(kind)
    first = fm.runtime.load(path, Net(1), task="math", resident=resident)
    first.set_task("code")
    with torch.no_grad():
        first.down.bias += 1
    other = copy.deepcopy(first)
    assert (other.current, other.training) == ("code", True)
    assert same(other.model, bits(first.model))
    expected = {task: bits(fm.runtime.load(path, Net(1), task=task).model) for task in (*TASKS, None)}
    for task in ("law", "math", None, "code"):
        before = bits(first.model)
        other.set_task(task)
        assert same(first.model, before), task
        assert kind == "folder" or same(other.model, expected[task]), task
        first.set_task(task)
        assert same(other.model, bits(first.model)), task
    other.model.double()
    other.set_task("law")
    first.set_task("math")
    assert kind == "folder" or same(first.model, expected["math"])


def again(live: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(live))


@pytest.mark.parametrize("resident", [False, True], ids=["plain", "resident"])
@pytest.mark.parametrize("kind", ["artefact", "folder"])
def test_a_pickle_switches_on(kind: str, resident: bool, request: pytest.FixtureRequest) -> None:
    """It has the bits that the model had, whatever changed them, and those of every task."""
    path = request.getfixturevalue(kind)
    first = fm.runtime.load(path, Net(1), task="math", resident=resident).eval()
    with torch.no_grad():
        first.down.bias += 1
    other = again(first)
    assert (other.current, other.training, other.down.training) == ("math", False, False)
    assert same(other.model, bits(first.model))
    for task in ("law", None, "code"):
        other.set_task(task)
        first.set_task(task)
        assert same(other.model, bits(first.model)), task
    assert same(again(other).model, bits(first.model))


class Allocated(TorchDispatchMode):
    """Counts the bytes of tensors that are made of others, views apart."""

    nbytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            given = {own.untyped_storage().data_ptr() for own in args if isinstance(own, Tensor)}
            self.nbytes += made.nbytes if made.untyped_storage().data_ptr() not in given else 0
        return made


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("kind", ["artefact", "folder"])
def test_a_pickle_takes_no_second_models_memory(kind: str, dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    """Nor is its model written to: what it has is what was pickled."""
    first = fm.runtime.load(request.getfixturevalue(kind), Net(1, dtype), task="math")
    made, given = first.__reduce_ex__(2)
    versions = {name: tensor._version for name, tensor in first.model.named_parameters()}
    with Allocated() as allocated:
        other = made(*given)
    # Of a folder, what the backbone has at the task's elements is had anew: here a tenth of all.
    assert allocated.nbytes < sum(p.nbytes for p in first.model.parameters()) / 2
    assert {name: tensor._version for name, tensor in other.model.named_parameters()} == versions


def test_a_pickle_in_another_process(folder: Path, tmp_path: Path) -> None:
    """As torch.save and the workers of spawn and Ray have it."""
    live = fm.runtime.load(folder, Net(1), task="math")
    torch.save(live, tmp_path / "live.pt")
    code = (
        "import sys, torch; live = torch.load(sys.argv[1], weights_only=False); live.set_task('code'); "
        "torch.save(live.model.state_dict(), sys.argv[1])"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-P", "-c", code, str(tmp_path / "live.pt")]
    subprocess.run(command, cwd=tmp_path, env=env, check=True)
    live.set_task("code")
    there = Net(1)
    there.load_state_dict(torch.load(tmp_path / "live.pt"))
    assert same(live.model, bits(there))


def test_a_model_sent_to_a_worker_leaves_the_first_alone(folder: Path) -> None:
    """Multiprocessing sends the memory itself."""
    first = fm.runtime.load(folder, Net(1, tied=True), task="math")
    before = bits(first.model)
    other = pickle.loads(ForkingPickler.dumps(first))
    assert other.out.weight is other.embed.weight
    other.set_task("code")
    assert same(first.model, before)
    first.set_task("code")
    assert same(other.model, bits(first.model))


def test_a_pickle_of_a_folder_that_is_another_now(folder: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(folder, here)
    pickled = pickle.dumps(fm.runtime.load(here, Net(1)))
    record = json.loads((here / "experts.json").read_text())
    record["experts"]["math"]["scale"] += 1
    (here / "experts.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="is of another merge than the live model was when it was pickled"):
        pickle.loads(pickled)
    shutil.rmtree(here)
    with pytest.raises(InputError, match=f"{here}: is no folder"):
        pickle.loads(pickled)


def test_a_live_model_is_not_copied_halfway(folder: Path) -> None:
    with pytest.raises(InputError, match=r"changes its tensors in place, .* use copy\.deepcopy"):
        copy.copy(fm.runtime.load(folder, Net(1)))
