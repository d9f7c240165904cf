"""Twin-Merging: a shared expert, and experts of low rank in a folder, in memory and in a live model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from folders import near, read, state, write
from live import TASKS, Net, bits, family, same
from safetensors.torch import load_file, save_file
from tensors import assert_same_bits

import fastmerge as fm
from fastmerge.errors import InputError, MergeError
from fastmerge.formats.experts import ExpertsFolder

SHAPES = {"w": (24, 40), "m.experts.w": (3, 8, 10), "conv": (6, 5, 3, 3), "bias": (30,), "scalar": (), "empty": (0, 4)}


def test_by_hand() -> None:
    """θ_s = diag(1, 2, 2); what math lacks of it has rank 2, of which 1 is kept; vectors are kept whole."""
    base = {"w": torch.zeros(3, 3), "b": torch.zeros(2)}
    math = {"w": torch.diag(torch.tensor([2.0, 0, 3])), "b": torch.tensor([1.0, 0])}
    code = {"w": torch.diag(torch.tensor([0.0, 4, 1])), "b": torch.tensor([0.0, 3])}
    result = fm.merge_state_dicts("twin", base, {"math": math, "code": code}, scale=0.5, rank=1)
    assert result.state_dict["w"].tolist() == torch.diag(torch.tensor([1.0, 2, 2])).tolist()
    assert np.asarray(result.task("math")["w"]) == pytest.approx(np.diag([1, 0, 2]), abs=1e-6)
    assert result.task("math")["b"].tolist() == [1, 0]
    whole = fm.merge_state_dicts("twin", base, {"math": math, "code": code}, rank=3)
    assert np.asarray(whole.task("code")["w"]) == pytest.approx(np.asarray(code["w"]), abs=1e-6)


@pytest.mark.parametrize("exclude", [(), ("w", "bias")], ids=["all", "excluded"])
def test_is_the_best_of_its_rank(exclude: tuple[str, ...]) -> None:
    """By NumPy's singular values, of stacks and convolutions as matrices; what is excluded stays shared."""
    base = state(0, torch.float64, SHAPES)
    models = {f"m{k}": near(base, k + 1) for k in range(3)}
    result = fm.merge_state_dicts("twin", base, models, rank=4, exclude=exclude)
    for name, tensor in base.items():
        shared = tensor + 0.3 * sum((m[name] - tensor) for m in models.values())
        lacking = (models["m1"][name] - shared).numpy()
        if name in exclude:
            lacking = np.zeros_like(lacking)
        elif tensor.ndim > 1 and tensor.numel():
            columns = 10 if name == "m.experts.w" else tensor[0].numel()
            u, sigma, v = np.linalg.svd(lacking.reshape(-1, columns), full_matrices=False)
            lacking = (u[:, :4] * sigma[:4] @ v[:4]).reshape(lacking.shape)
        actual = result.task("m1")[name].numpy()
        np.testing.assert_allclose(actual, shared.numpy() + lacking, atol=1e-7, err_msg=name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base, models = family(tmp_path)
    fm.merge("twin", base, models, tmp_path / "out", {"rank": 3}, memory="2GiB")
    return tmp_path / "out"


def test_folder(folder: Path, tmp_path: Path) -> None:
    """It says what it is, verifies, and gives the tasks that are made in memory."""
    base, models = read(tmp_path / "base"), {name: read(tmp_path / name) for name in TASKS}
    expected = fm.merge_state_dicts("twin", base, models, rank=3)
    assert fm.verify(folder, samples=None).problems == []
    record = ExpertsFolder(folder).record.experts["code"]
    assert (record.scale, record.rank, record.density) == (1.0, 3, None)
    stored = load_file(folder / "experts" / "code.safetensors")
    assert stored["up.weight/up"].shape == (9000, 3)
    fm.task(folder, "code", tmp_path / "task")
    for name, tensor in read(tmp_path / "task").items():
        assert_same_bits(tensor, expected.task("code")[name], name)


def test_live_model(folder: Path, tmp_path: Path) -> None:
    """Any order of tasks, several at once, and none: always the same bits, those of the folder that `task` writes."""
    model = Net(5)
    live = fm.runtime.load(folder, model)
    alone = bits(model)
    live.set_task("code")
    fm.task(folder, "code", tmp_path / "task")
    for name, tensor in read(tmp_path / "task").items():
        assert_same_bits(model.state_dict()[name], tensor, name)
    code = bits(model)
    live.set_task({"math": 0.25, "law": 0.75})
    both = bits(model)
    assert not same(model, code)
    for task, expected in (("code", code), ({"law": 0.75, "math": 0.25}, both), (None, alone), ("code", code)):
        live.set_task(task)
        assert same(model, expected), task
    live.add_expert("law", 0.5)
    live.remove_expert("law")
    assert same(model, code)


def test_what_is_not_finite_is_named(tmp_path: Path) -> None:
    base = state(0, torch.float32)
    broken = near(base, 1)
    broken["layers.0.weight"][3, 3] = float("nan")
    folders = {"good": write(tmp_path / "good", near(base, 2)), "bad": write(tmp_path / "bad", broken)}
    with pytest.raises(MergeError, match=r"'layers.0.weight': NaN or infinity in bad"):
        fm.merge("twin", write(tmp_path / "base", base), folders, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t | {"up.weight/up": torch.zeros(8999, 3)}, "no factors of"),
        (lambda t: {n: x for n, x in t.items() if n != "up.weight/down"}, "the file is damaged"),
    ],
    ids=["shape", "missing"],
)
def test_damaged_factors(change: Any, said: str, folder: Path) -> None:
    file = folder / "experts" / "law.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(InputError, match=said):
        fm.runtime.load(folder, Net())


def test_sparse_for_one_and_a_product_for_another(folder: Path) -> None:
    file = folder / "experts" / "law.safetensors"
    tensors = load_file(file)
    kept = {n: x for n, x in tensors.items() if not n.startswith("up.weight/")}
    parts = {"counts": torch.zeros(2, dtype=torch.int32), "offsets": torch.empty(0, dtype=torch.uint16)}
    parts |= {"values": torch.empty(0)}
    save_file(kept | {f"up.weight/{part}": x for part, x in parts.items()}, file)
    with pytest.raises(InputError, match=r"'up.weight' is changed by elements for one task, by a product for another"):
        fm.runtime.load(folder, Net())


def test_record_of_older_folders(folder: Path) -> None:
    """A folder's record keeps to the form that it had."""
    content = json.loads((folder / "experts.json").read_text())
    assert content["version"] == 1
    assert set(content["experts"]["math"]) == {"file", "scale", "rank"}
