"""A model as an adapter: exact where the rank suffices, the nearest where not, and what was lost is told."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapters import lora, write_adapter
from folders import content, near, read, state, write
from safetensors import SafetensorError
from typer.testing import CliRunner

import fastmerge as fm
from fastmerge.cli import app
from fastmerge.engine import extract as module
from fastmerge.engine.factor import factor
from fastmerge.errors import InputError, MergeError

SHAPES = {"embed.weight": (50, 24), "a.weight": (40, 24), "b.weight": (30, 64), "b.bias": (30,), "c.weight": (6, 9)}
MODULES = {"a": (40, 24), "b": (30, 64), "c": (6, 9)}


def test_an_adapter_is_found_again(tmp_path: Path) -> None:
    """A model that is base and an adapter of rank 4 is, at rank 4 and more, the same again."""
    write(tmp_path / "base", state(0, torch.float32, SHAPES))
    write_adapter(tmp_path / "a", lora(MODULES, 4, 1))
    model = f"{tmp_path / 'base'}+{tmp_path / 'a'}"
    found = fm.extract_lora(tmp_path / "base", model, tmp_path / "again", rank=4)
    assert min(found.kept.values()) > 1 - 1e-6
    fm.merge("linear", None, {"m": model}, tmp_path / "one")
    fm.merge("linear", None, {"m": f"{tmp_path / 'base'}+{tmp_path / 'again'}"}, tmp_path / "two")
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


def test_energy_is_what_the_singular_values_say(tmp_path: Path) -> None:
    base = state(0, torch.float32, SHAPES)
    model = near(base, 1)
    write(tmp_path / "base", base)
    write(tmp_path / "m", model)
    found = fm.extract_lora(tmp_path / "base", tmp_path / "m", tmp_path / "out", rank=8)
    assert sorted(found.kept) == ["a.weight", "b.weight", "c.weight"]
    assert sorted(found.left_out) == ["b.bias", "embed.weight"]
    kept = energy = 0.0
    for name, tensor in model.items():
        delta = (tensor - base[name]).double()
        energy += float((delta**2).sum())
        if name in found.kept:
            squares = torch.linalg.svdvals(delta) ** 2
            assert found.kept[name] == pytest.approx(float(squares[:8].sum() / squares.sum()), rel=1e-5)
            kept += float(squares[:8].sum())
    assert found.total == pytest.approx(kept / energy, rel=1e-5)
    assert json.loads((tmp_path / "out" / "extraction.json").read_text())["kept"] == found.kept
    again = fm.extract_lora(tmp_path / "base", tmp_path / "m", tmp_path / "again", rank=8)
    assert again.kept == found.kept
    assert (
        content(tmp_path / "again")["adapter_model.safetensors"]
        == content(tmp_path / "out")["adapter_model.safetensors"]
    )


@pytest.mark.parametrize("shape", [(1200, 1100), (1100, 1300)], ids=str)
def test_a_large_matrix_is_decomposed_by_chance_nearly_as_well(shape: tuple[int, int]) -> None:
    """Halko et al.: with two iterations, within a per cent of the best on a spectrum that falls slowly."""
    generator = torch.Generator().manual_seed(1)
    u, v = (torch.linalg.qr(torch.randn(n, 200, generator=generator)).Q for n in shape)
    values = torch.arange(1, 201).float() ** -0.7
    matrix = (u * values) @ v.t()
    best = float((values[:16] ** 2).sum() / (values**2).sum())
    found, again, other = (factor(matrix, 16, seed, "name") for seed in (0, 0, 1))
    assert 0.99 * best < found.kept <= best * (1 + 1e-5)
    error = float(((matrix - found.up @ found.down) ** 2).sum() / (matrix**2).sum())
    assert error == pytest.approx(1 - found.kept, abs=1e-4)
    assert found.up.equal(again.up)
    assert not found.up.equal(other.up)


def test_what_cannot_be_extracted(tmp_path: Path) -> None:
    base = state(0, torch.float32, SHAPES)
    write(tmp_path / "base", base)
    write(tmp_path / "same", base)
    write(tmp_path / "bad", base | {"a.weight": base["a.weight"] * torch.nan})
    with pytest.raises(InputError) as caught:
        fm.extract_lora(tmp_path / "base", tmp_path / "none", tmp_path / "out", rank=0, dtype="int8")
    assert len(caught.value.problems) == 3
    with pytest.raises(InputError) as caught:
        fm.extract_lora(tmp_path / "base", tmp_path / "same", tmp_path / "base", tensors=["x"])
    assert len(caught.value.problems) == 3
    adapter = write_adapter(tmp_path / "a", lora(MODULES, 4, 1))
    with pytest.raises(InputError, match="is an adapter; give the model that it is for"):
        fm.extract_lora(adapter, adapter, tmp_path / "out")
    for model, says in (("same", "nothing to extract"), ("bad", "NaN or infinity")):
        with pytest.raises(MergeError, match=says):
            fm.extract_lora(tmp_path / "base", tmp_path / model, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_on_the_command_line(tmp_path: Path) -> None:
    """extract-lora tells what is kept; a recipe takes the adapter, beside itself, with its model."""
    base = state(0, torch.float32, SHAPES)
    write(tmp_path / "base", base)
    write(tmp_path / "m", near(base, 1))
    arguments = ["extract-lora", "base", "m", "--rank", "4", "--tensors", "[ab].weight", "--out", "lora"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        done = CliRunner().invoke(app, [*arguments, "--json"])
        again = CliRunner().invoke(app, arguments)
        shown = CliRunner().invoke(app, [*arguments, "--overwrite"])
    assert done.exit_code == 0, done.stderr
    assert sorted(json.loads(done.stdout)["kept"]) == ["a.weight", "b.weight"]
    assert (again.exit_code, shown.exit_code) == (2, 0)
    assert "exists already" in again.stderr
    assert "energy kept" in shown.stdout
    (tmp_path / "recipe.yaml").write_text("method: linear\nmodels: {one: base+lora, two: {path: m, weight: 0.5}}\n")
    fm.run(tmp_path / "recipe.yaml", tmp_path / "out")
    fm.merge("linear", None, {"one": f"{tmp_path / 'base'}+{tmp_path / 'lora'}"}, tmp_path / "one")
    one, two, merged = read(tmp_path / "one"), near(base, 1), read(tmp_path / "out")
    assert all(torch.allclose(merged[n], (one[n] + 0.5 * two[n]) / 1.5, atol=1e-6) for n in merged)


def test_patterns_that_match_nothing(tmp_path: Path) -> None:
    base = state(0, torch.float32, SHAPES)
    write(tmp_path / "base", base)
    write(tmp_path / "m", near(base, 1))
    with pytest.raises(InputError, match=r"--tensors 'a\.weigth' matches no tensor; did you mean 'a\.weight'"):
        fm.extract_lora(tmp_path / "base", tmp_path / "m", tmp_path / "out", tensors=["b.*", "a.weigth"])


def test_factors_beyond_their_dtype(tmp_path: Path) -> None:
    """An error that names the tensor, and no adapter of infinities."""
    base = state(0, torch.float32, SHAPES)
    write(tmp_path / "base", base)
    write(tmp_path / "m", base | {"b.weight": base["b.weight"] * 1e12})
    with pytest.raises(MergeError, match=r"'b\.weight': its factors leave the range of float16"):
        fm.extract_lora(tmp_path / "base", tmp_path / "m", tmp_path / "out", dtype="float16")
    fm.extract_lora(tmp_path / "base", tmp_path / "m", tmp_path / "out", dtype="bfloat16")


def disk_full(*_: object) -> None:
    raise SafetensorError("Error while serializing: No space left on device (os error 28)")


def file_too_large(*_: object) -> None:
    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))


def stopped(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("save_file", disk_full),
        *((where, what) for where in ("save_file", "write_json") for what in (file_too_large, stopped)),
    ],
    ids=lambda own: own if isinstance(own, str) else own.__name__,
)
def test_nothing_is_left_of_one_that_ends_early(
    where: str, what: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to resume, and nobody is told to."""
    base = state(0, torch.float32, SHAPES)
    write(tmp_path / "base", base)
    write(tmp_path / "m", near(base, 1))
    monkeypatch.setattr(module, where, what)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt if what is stopped else MergeError) as caught:
        fm.extract_lora(tmp_path / "base", tmp_path / "m", tmp_path / "out")
    assert "--resume" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_rank_beyond_every_matrix_takes_no_more_room(tmp_path: Path) -> None:
    base = state(0, torch.float32, SHAPES)
    write(tmp_path / "base", base)
    write(tmp_path / "m", near(base, 1))
    found = fm.extract_lora(tmp_path / "base", tmp_path / "m", tmp_path / "out", rank=1 << 40)
    assert found.parameters == sum(min(SHAPES[name]) * sum(SHAPES[name]) for name in found.kept)
