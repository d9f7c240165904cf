"""A folder's tensors in a model: names, prefixes, tied tensors, and everything that does not fit in one error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from experts import experts_folder
from folders import write
from live import Net, bits, emr, same, stored
from torch import nn

import fastmerge as fm
from fastmerge.errors import InputError
from fastmerge.formats.checkpoint import open_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return experts_folder(tmp_path_factory.mktemp("f") / "free", stored(Net(0)), 2)


class Inside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Net(1)


def test_a_uniform_prefix_is_one_finding_that_proposes_the_renaming(folder: Path) -> None:
    model = Inside()
    with pytest.raises(InputError, match=r"pass rename=\[\('model.', ''\)\]") as caught:
        fm.runtime.load(folder, model)
    assert len(caught.value.problems) == 1
    fm.runtime.load(folder, model, task="t0", rename=[("model.", "")])
    assert same(model.model, bits(fm.runtime.load(folder, Net(1), task="t0").model))


def without(model: nn.Module, name: str) -> nn.Module:
    delattr(model, name)
    return model


def with_another(model: nn.Module) -> nn.Module:
    model.extra = nn.Linear(2, 2)
    return model


def wider(model: Net) -> nn.Module:
    model.up = nn.Linear(8, 9001, bias=False)
    return model


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: without(Net(1), "norm"), ["'norm.weight' .* is missing", "'norm.bias' .* is missing"]),
        (lambda: with_another(Net(1)), ["'extra.weight' is not in", "'extra.bias' is not in"]),
        (lambda: wider(Net(1)), [r"'up.weight' is float32 \[9001, 8\], .* has BF16 \[9000, 8\]"]),
        (lambda: Net(1, torch.float8_e4m3fn), ["'embed.weight' is float8_e4m3fn"]),
        (lambda: Net(1).to("meta"), ["'embed.weight' is on the meta device"]),
        (lambda: without(with_another(Net(1)), "up"), ["'up.weight' .* is missing", "'extra.weight' is not in"]),
    ],
)
def test_everything_that_does_not_fit(folder: Path, make: Callable[[], nn.Module], expected: list[str]) -> None:
    model = make()
    with pytest.raises(InputError) as caught:
        fm.runtime.load(folder, model)
    for pattern in expected:
        assert caught.match(pattern)


def test_buffers_of_any_kind_are_the_models_own_affair(folder: Path) -> None:
    """Sparse, complex: what has no memory in order is left alone."""
    model = Net(1)
    model.register_buffer("graph", torch.eye(3).to_sparse())
    model.register_buffer("frequencies", torch.zeros(2, dtype=torch.complex64))
    fm.runtime.load(folder, model, task="t0")
    assert torch.equal(model.graph.to_dense(), torch.eye(3))
    plain = fm.runtime.load(folder, Net(1), task="t0")
    assert torch.equal(model.up.weight, plain.up.weight)


def test_integers_of_every_dtype_are_the_folders(tmp_path: Path) -> None:
    dtypes = [torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.bool]
    integers = {f"own{i}": torch.arange(4).to(dtype) for i, dtype in enumerate(dtypes)}
    free = experts_folder(tmp_path / "free", {**stored(Net(0)), **integers}, copied=["steps", *integers])
    model = Net(1)
    for name, tensor in integers.items():
        model.register_buffer(name, torch.zeros_like(tensor))
    fm.runtime.load(free, model)
    for name, tensor in integers.items():
        assert torch.equal(getattr(model, name), tensor)


def test_a_tie_that_the_folder_does_not_have(tmp_path: Path) -> None:
    """One parameter cannot be two tensors."""
    artefact = emr(tmp_path, tied=False)
    with pytest.raises(InputError, match=r"'embed.weight' and 'out.weight' are one parameter") as caught:
        fm.runtime.load(artefact, Net(1, tied=True))
    assert len(caught.value.problems) == 1


def test_a_tie_that_the_model_does_not_have(tmp_path: Path) -> None:
    """A folder that stores a tied tensor under both names gives it to both, and changes both."""
    state = {n: t.clone() for n, t in Net(0).state_dict().items()}
    free = experts_folder(tmp_path / "free", stored(Net(0)), 1)
    both = write(tmp_path / "both", state)
    for name in ("experts", "experts.json"):
        (free / name).rename(both / name)
    record = json.loads((both / "experts.json").read_text())
    record |= {"aliases": {"embed.weight": ["out.weight"]}, "backbone": open_checkpoint(both, "b").identity()}
    (both / "experts.json").write_text(json.dumps(record))
    apart, tied = (fm.runtime.load(both, Net(1, tied=tied), task="t0") for tied in (False, True))
    assert torch.equal(apart.out.weight, tied.embed.weight)
    assert torch.equal(apart.embed.weight, tied.embed.weight)
    for live in (apart, tied):
        live.set_task(None)
        assert torch.equal(live.out.weight, Net(0).embed.weight)


def test_what_is_no_folder_of_tasks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        fm.runtime.load(tmp_path / "nowhere", Net(1))
    with pytest.raises(InputError, match=r"has neither emr.json nor experts.json"):
        fm.runtime.load(write(tmp_path / "model", stored(Net(0))), Net(1))


def test_another_base_than_the_experts_were_cut_from(tmp_path: Path) -> None:
    base, other = (write(tmp_path / n, stored(Net(seed))) for n, seed in (("base", 3), ("other", 4)))
    path = experts_folder(tmp_path / "free", stored(Net(0)), 2, base=base)
    fm.runtime.load(path, Net(1), base=base)
    model = Net(1)
    before = bits(model)
    with pytest.raises(InputError, match="not the base model it was made with") as caught:
        fm.runtime.load(path, model, base=other)
    assert len(caught.value.problems) == 1
    assert same(model, before)
