"""fastmerge inside mergekit, through mergekit's own command and executor."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import llama
import mergekit_runner
import pytest
import torch
from folders import read, state, weights, write
from mergekit_configs import Config, based, located, model, source
from tokenizers_on_disk import write_tokenizer

import fastmerge as fm

pytestmark = pytest.mark.skipif(not mergekit_runner.available(), reason="there is no mergekit here")

A, B = model("a"), model("b")
TIES = based("ties", model("a", weight=1.0, density=0.5), model("b", weight=0.3, density=[0.2, 1]), **{"lambda": 0.7})
OURS: dict[str, Config] = {
    "emr": based("emr", A, B),
    "emr of a": based("emr", A, B, task="a"),
    "emr of b": based("emr", A, B, task="b", rescale="mean_of_means"),
    "fr": based("fr", A, B, cutoff=0.4),
    "fr, coefficients": based("fr", model("a", coefficient=0.1), model("b", coefficient=0.5), scale=0.5),
    "free": based("free", A, B, expert_density=0.05),
    "free of a": based("free", A, B, task="a", expert_density=0.05),
}
TAKEN: dict[str, Config] = {
    "ties": TIES,
    "task_arithmetic": based("task_arithmetic", model("a", weight=0.3), model("b", weight=0.6)),
    "dare_ties": based("dare_ties", model("a", weight=1.0, density=0.5), model("b", weight=0.3, density=0.9)),
    "della": based("della", model("a", weight=1.0, density=0.5), model("b", weight=0.3, density=0.6)),
    "breadcrumbs": based("breadcrumbs", model("a", weight=1.0, density=0.5), model("b", weight=0.3, density=0.6)),
}
SEED = 7


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return llama.family(tmp_path_factory.mktemp("models"), {"a": 1, "b": 2}, layers=2)


@pytest.fixture(scope="module")
def theirs(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mergekit gives with the binding, by mode."""
    root = tmp_path_factory.mktemp("mergekit")
    jobs = {root / name: located(config, folders) for name, config in (OURS | {"stock": TIES}).items()}
    mergekit_runner.run(jobs, "register")
    taken = {root / "taken" / name: located(config, folders) for name, config in TAKEN.items()}
    mergekit_runner.run(taken, "take over", seeds=dict.fromkeys(taken, SEED))
    return root


def equal(one: Path, other: Path) -> None:
    """The same tensors to the bit."""
    ours, expected = read(one), read(other)
    assert ours.keys() == expected.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor.view(torch.int32), expected[name].view(torch.int32)), name


@pytest.mark.parametrize("name", OURS)
def test_ours(name: str, folders: dict[str, Path], theirs: Path, tmp_path: Path) -> None:
    """They give what fastmerge gives: a unified or a merged model, or that of a task."""
    config = located(OURS[name], folders)
    task = config["parameters"].pop("task", None)
    fm.run(config, tmp_path / "whole")
    if task is not None:
        fm.task(tmp_path / "whole", task, tmp_path / "out")
        return equal(theirs / name, tmp_path / "out")
    if config["merge_method"] != "emr":
        return equal(theirs / name, tmp_path / "whole")
    states = {label: read(folders[label]) for label in ("base", "a", "b")}
    base = states.pop("base")
    merged = fm.merge_state_dicts("emr", base, states).state_dict
    found = read(theirs / name)
    assert all(torch.equal(found[tensor], merged[tensor]) for tensor in base)
    return None


@pytest.mark.parametrize("name", TAKEN)
def test_taken_over(name: str, folders: dict[str, Path], theirs: Path, tmp_path: Path) -> None:
    """mergekit's methods give the bytes that fastmerge gives, drawn by mergekit's seed."""
    config = located(TAKEN[name], folders)
    config["parameters"] |= {"seed": SEED} if name in ("dare_ties", "della") else {}
    fm.run(config, tmp_path / "out")
    equal(theirs / "taken" / name, tmp_path / "out")


def test_stock_methods_are_left_alone(folders: dict[str, Path], theirs: Path, tmp_path: Path) -> None:
    """Where ours are only registered, mergekit's own are its own."""
    mergekit_runner.run({tmp_path / "out": located(TIES, folders)})
    assert weights(theirs / "stock") == weights(tmp_path / "out")


def test_the_command(folders: dict[str, Path], tmp_path: Path) -> None:
    """mergekit-yaml with fastmerge's methods, in one line."""
    config = located(OURS["fr"], folders)
    (tmp_path / "config.yml").write_text(json.dumps(config))
    program = [mergekit_runner.PYTHON, "-m", "fastmerge.bindings.mergekit", "--take-over", "config.yml", "theirs"]
    there = mergekit_runner.environment(tmp_path)
    done = subprocess.run(program, cwd=tmp_path, env=there, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fm.run(config, tmp_path / "ours")
    equal(tmp_path / "theirs", tmp_path / "ours")


def sliced(method: str, *ranges: tuple[int, int]) -> Config:
    slices = [{"sources": [source(name, *own) for name in ("base", "a", "b")]} for own in ranges]
    return {"merge_method": method, "base_model": "base", "slices": slices}


@pytest.mark.parametrize("method", ["emr", "fr", "free"])
@pytest.mark.parametrize("ranges", [((0, 1),), ((1, 2),), ((0, 2), (1, 2))], ids=["first", "last", "twice"])
def test_slices_are_refused(
    method: str, ranges: tuple[tuple[int, int], ...], folders: dict[str, Path], tmp_path: Path
) -> None:
    """What these methods learn of whole models is not that of some layers."""
    error = refused(located(sliced(method, *ranges), folders), tmp_path)
    assert f"`{method}` inside mergekit needs whole models" in error


def test_slices_of_all_layers_are_whole_models(folders: dict[str, Path], tmp_path: Path) -> None:
    configs = {"sliced": sliced("fr", (0, 2)), "whole": based("fr", A, B)}
    mergekit_runner.run({tmp_path / name: located(config, folders) for name, config in configs.items()}, "register")
    equal(tmp_path / "sliced", tmp_path / "whole")


@pytest.mark.parametrize("tokens", ["cba", "abcd"], ids=["another order", "one more"])
def test_other_tokens_are_refused(tokens: str, tmp_path: Path) -> None:
    error = refused(located(based("fr", A), token_models(tmp_path, tokens)) | {"tokenizer_source": "union"}, tmp_path)
    assert "`fr` inside mergekit needs whole models with the same tokens" in error
    assert "has other rows than on disk" in error


FIRST = """
import sys, torch
from mergekit.common import ModelReference
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import TensorGroup
import fastmerge.bindings.mergekit as binding

binding.register()
models = [ModelReference.model_validate(path) for path in sys.argv[1:]]
name, tensors = "model.norm.weight", [torch.ones(16)] * 2
registry.get("fr")([TensorGroup.from_tensors(tensors, ids=models, base_index=0, name=name)])
"""


def test_other_tokens_are_refused_by_whichever_tensor_is_first(tmp_path: Path) -> None:
    """In words of mergekit's: it has no --vocab."""
    made = token_models(tmp_path, "abcd")
    error = failed(["-c", FIRST, str(made["base"]), str(made["a"])], tmp_path)
    assert "`fr` inside mergekit needs whole models with the same tokens; a: tensor" in error
    assert "has shape [4, 16], base has [3, 16]" in error
    assert "--vocab" not in error


def token_models(folder: Path, tokens: str) -> dict[str, Path]:
    """base of tokens a, b and c, and a model of others."""
    return {"base": with_tokens(folder / "base", 0, "abc"), "a": with_tokens(folder / "a", 1, tokens)}


def with_tokens(folder: Path, seed: int, tokens: str) -> Path:
    """A model whose tokens are the letters of a text."""
    write(folder, state(seed, torch.float32, llama.shapes(1, len(tokens))), llama.config(1, len(tokens)))
    return write_tokenizer(folder, list(tokens))


def refused(config: Config, folder: Path) -> str:
    """How mergekit's command ends."""
    (folder / "config.yml").write_text(json.dumps(config))
    return failed(["-m", "fastmerge.bindings.mergekit", "config.yml", "out"], folder)


def failed(arguments: list[str], folder: Path) -> str:
    """The error that mergekit's Python ends with."""
    there = mergekit_runner.environment(folder)
    program = [mergekit_runner.PYTHON, *arguments]
    done = subprocess.run(program, cwd=folder, env=there, check=False, capture_output=True, text=True)
    assert done.returncode != 0
    return done.stderr[done.stderr.rfind("InputError") :]
