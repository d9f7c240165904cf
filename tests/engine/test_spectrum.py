"""Spectra of task vectors: against plain float64, against the filter itself, and by hand."""

from __future__ import annotations

import errno
import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run
from folders import near, state, write
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastmerge as fm
from fastmerge import targets
from fastmerge.engine import rings
from fastmerge.engine.spectrum import Spectrum
from fastmerge.engine.spectrum_plot import save_figure
from fastmerge.errors import InputError, MergeError

SHAPES = {"embed.weight": (50, 8), "layers.0.up.weight": (33, 20), "layers.1.up.weight": (24, 40), "norm.weight": (8,)}


def folders(root: Path, vectors: list[dict[str, Tensor]], dtype: torch.dtype = torch.float32) -> list[Path]:
    """A zero base, and models that are these task vectors."""
    zero = {name: torch.zeros(t.shape, dtype=dtype) for name, t in vectors[0].items()}
    made = [write(root / f"m{k}", {n: t.to(dtype) for n, t in own.items()}) for k, own in enumerate(vectors)]
    return [write(root / "base", zero), *made]


def spectrum(root: Path, vectors: list[dict[str, Tensor]], **options: Any) -> Spectrum:
    base, *models = folders(root, vectors, options.pop("dtype", torch.float32))
    return fm.spectrum(base, [(path.name, path) for path in models], **options)


def amplitudes(vectors: list[dict[str, Tensor]], name: str) -> Tensor:
    return torch.stack([torch.fft.fft2(own[name].double(), norm="ortho").abs() for own in vectors])


def interference(vectors: list[dict[str, Tensor]], filtered: list[dict[str, Tensor]]) -> float:
    """The definition, in float64, of task vectors and what a filter made of them."""
    found = []
    for name in vectors[0]:
        plain, own = (
            torch.stack([torch.fft.fft2(v[name].double(), norm="ortho").abs() for v in vs])
            for vs in (vectors, filtered)
        )
        found.append(float(own.var(0, correction=0).mean() / plain.square().mean()))
    return sum(found) / len(found)


@given(
    h=st.integers(1, 40),
    w=st.integers(1, 40),
    k=st.integers(1, 4),
    seed=st.integers(0, 9),
    cutoff=st.integers(0, 160).map(lambda n: n / 100),
)
def test_against_float64(
    h: int, w: int, k: int, seed: int, cutoff: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Interference before and after are those of the task vectors, and of what `highpass` makes of them."""
    vectors = [state(seed * 10 + i, torch.float32, {"a.weight": (h, w), "b.weight": (w, 7)}) for i in range(k)]
    vectors[0] = {name: 3 * t for name, t in vectors[0].items()}
    found = spectrum(tmp_path_factory.mktemp("spectrum"), vectors, cutoff=cutoff)
    filtered = [{name: fm.ops.highpass(t.double(), cutoff=cutoff) for name, t in own.items()} for own in vectors]
    if k == 1:
        assert (found.before, found.after, found.variance, found.interference_left) == (None,) * 4
    else:
        assert found.before == pytest.approx(interference(vectors, vectors), rel=1e-4, abs=1e-12)
        assert found.after == pytest.approx(interference(vectors, filtered), rel=1e-4, abs=1e-9)
    for i, name in enumerate(found.models):
        scale = {n: sum(float(v[n].square().sum()) for v in vectors) / vectors[0][n].numel() for n in vectors[0]}
        kept, whole = (
            sum(float(v[i][n].double().square().sum()) / s for n, s in scale.items()) for v in (filtered, vectors)
        )
        assert found.power_kept[name] == pytest.approx(kept / whole, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("ring", [0, 1, 12, 39, 40, 59])
@pytest.mark.parametrize("shape", [(64, 64), (33, 50), (80, 7)])
def test_a_ring_begins_where_its_cutoff_does(ring: int, shape: tuple[int, int], tmp_path: Path) -> None:
    """What is left by the curve at a ring is what is left after a filter of that very cutoff."""
    vectors = [state(k, torch.float32, {"a.weight": shape}) for k in range(3)]
    found = spectrum(tmp_path, vectors, cutoff=ring / rings.PER_HALF)
    assert found.interference_left is not None
    assert found.radii[ring] == found.cutoff
    assert found.interference_left[ring] == pytest.approx(found.after, rel=1e-12)
    assert found.power_left["m1"][ring] == pytest.approx(found.power_kept["m1"], rel=1e-12)
    assert (found.interference_left[0], found.power_left["m1"][0]) == pytest.approx((found.before, 1.0), rel=1e-12)


def test_by_hand(tmp_path: Path) -> None:
    """Two waves of radius ½, of amplitudes 1 and 3: two bins each of 64, of 4 and 12 by the unitary transform.

    The mean power of all bins is (2 · 16 + 2 · 144) / 128 = 2.5, the variance in those bins 16, so 2 · 16 / 64 / 2.5.
    """
    wave = torch.cos(torch.arange(8) * 2 * math.pi * 2 / 8).expand(8, 8).clone()
    found = spectrum(tmp_path, [{"w.weight": wave}, {"w.weight": 3 * wave}], cutoff=0.5)
    assert (found.before, found.after) == pytest.approx((0.2, 0.2), rel=1e-5)
    ring = found.radii.index(0.5)
    in_ring = 4  # (±2, 0) and (0, ±2)
    for name, amplitude in (("m0", 4), ("m1", 12)):
        assert found.amplitude[name][ring] == pytest.approx(2 * amplitude / in_ring / 2.5**0.5, rel=1e-5)
    assert found.amplitude["m0"][1] is None
    gone = spectrum(tmp_path / "again", [{"w.weight": wave}, {"w.weight": 3 * wave}], cutoff=0.51)
    assert gone.after == pytest.approx(0, abs=1e-10)
    assert gone.power_kept["m1"] == pytest.approx(0, abs=1e-10)


def test_scale_and_matrix_size_do_not_count(tmp_path: Path) -> None:
    """Powers of two and a sixteen-bit copy on the grid change nothing; alike models interfere nowhere."""
    one = [{"a.weight": torch.randint(-8, 9, (30, 20)) / 8} for _ in range(2)]
    plain = spectrum(tmp_path / "a", one)
    scaled = spectrum(tmp_path / "b", [{n: 2**10 * t for n, t in own.items()} for own in one], dtype=torch.bfloat16)
    assert (scaled.before, scaled.amplitude) == (plain.before, plain.amplitude)
    assert spectrum(tmp_path / "c", [one[0], one[0]]).before == pytest.approx(0, abs=1e-12)


def test_which_tensors(tmp_path: Path) -> None:
    """The matrices that fr filters, less those that never change; patterns name others; a sample is always the same."""
    vectors = [near(state(0, torch.float32, SHAPES), k) | {"layers.2.up.weight": torch.zeros(4, 4)} for k in (1, 2)]
    base, *models = folders(tmp_path, vectors)
    named = {path.name: path for path in models}
    found = fm.spectrum(base, named)
    assert (found.tensors, found.candidates) == (["layers.0.up.weight", "layers.1.up.weight"], 3)
    assert found.notes == ["1 tensors in which no model differs from base are left out"]
    assert fm.spectrum(base, named, tensors=["embed*", "norm*"]).tensors == ["embed.weight"]
    samples = [fm.spectrum(base, named, tensors=["*.0.*", "e*"], max_tensors=1).tensors for _ in range(2)]
    assert samples[0] == samples[1]
    assert len(samples[0]) == 1
    assert fm.spectrum(base, named, max_tensors=0).candidates == 3


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.layers.0.self_attn.q_proj.weight", (4, 6), (1, 4, 6)),
        ("visual.transformer.resblocks.0.mlp.c_fc.weight", (4, 6), (1, 4, 6)),
        ("model.layers.0.block_sparse_moe.experts.gate_up_proj", (3, 4, 6), (3, 4, 6)),
        ("vision.position_ids", (1, 197, 768), None),
        ("model.norm.weight", (4,), None),
    ],
)
def test_targets_by_shape(name: str, shape: tuple[int, ...], expected: object) -> None:
    assert targets.matrices(name, shape) == expected
    assert not targets.excluded(name)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "transformer.wte.weight",
        "shared.weight",
        "lm_head.weight",
        "classifier.weight",
        "cls.predictions.decoder.weight",
        "visual.positional_embedding",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    ],
)
def test_no_targets_by_name(name: str) -> None:
    assert targets.excluded(name)


def test_stacks_are_many_matrices(tmp_path: Path) -> None:
    """A stack of experts counts as its matrices do when each is a tensor."""
    stacks = [torch.randn(3, 12, 10) * (k + 1) for k in range(2)]
    together = spectrum(tmp_path / "a", [{"mlp.experts.up": stack} for stack in stacks])
    apart = spectrum(tmp_path / "b", [{f"up.{i}": t.clone() for i, t in enumerate(stack)} for stack in stacks])
    assert together.before == pytest.approx(apart.before, rel=1e-12)
    assert together.amplitude == apart.amplitude


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folders(tmp_path, [near(state(0, torch.float32, SHAPES), k) for k in (1, 2)])
    return tmp_path


def test_command(root: Path) -> None:
    """A table, a drawing that is the same every time, and JSON with every number; names from folders or given."""
    pytest.importorskip("matplotlib")
    models = [root / "m0", "--model", f"code={root / 'm1'}"]
    code, out, error = run("spectrum", root / "base", *models, "--out", root / "s.png", "--cutoff", "0.2")
    assert code == 0, error
    assert all(part in out for part in ("interference at 0.2", "power of m0", "power of code", "2 tensors of 2"))
    drawn = (root / "s.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    code, _, error = run("spectrum", root / "base", *models, "--out", root / "s.png")
    assert (code, "exists already" in error) == (2, True)
    assert run("spectrum", root / "base", *models, "--out", root / "s.png", "--cutoff", "0.2", "--overwrite")[0] == 0
    assert (root / "s.png").read_bytes() == drawn
    found = json.loads(run("spectrum", root / "base", *models, "--json")[1])
    assert found["models"] == ["m0", "code"]
    assert found["after"] < found["before"]
    assert len(found["amplitude"]["code"]) == len(found["radii"]) == len(found["variance"])
    assert sorted(path.name for path in root.iterdir()) == ["base", "m0", "m1", "s.png"]
    code, out, _ = run("spectrum", root / "base", root / "m0")
    assert (code, "interference at" in out) == (0, False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["m0", "m0"], ["2 models are called 'm0'"]),
        ([], ["models can be merged, these are 0"]),
        (["m0", "m7"], ["m7: ", "does not exist"]),
        (["m0", "--cutoff", "-1"], ["cutoff must be a number"]),
        (["m0", "--max-tensors", "-1"], ["max_tensors is -1"]),
        (["m0", "--tensors", "x*"], ["'x*' matches no tensor"]),
        (["m0", "--tensors", "norm*"], ["there is no matrix"]),
        (["m0", "--model", "m1"], ["expected NAME=PATH"]),
        (["base"], ["'base'", "model name"]),
        (["m0", "--out", "s.jpg"], ["call it s.png"]),
        (["m0", "--out", "no/s.png"], ["is no folder"]),
    ],
)
def test_bad_arguments(arguments: list[str], said: list[str], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    code, _, error = run("spectrum", "base", *arguments)
    assert (code, error.count("error:")) == (2, 1), error
    assert all(part in error for part in said), error


def test_without_matplotlib(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is computed; the numbers need none."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, error = run("spectrum", root / "base", root / "m0", "--out", root / "s.png")
    assert (code, "pip install matplotlib" in error) == (2, True)
    assert run("spectrum", root / "base", root / "m0")[0] == 0


def test_nan_and_nothing(tmp_path: Path) -> None:
    """NaN is named, a failure while running; models equal to base have no spectrum."""
    good = {"a.weight": torch.ones(4, 4)}
    bad = {"a.weight": torch.tensor([math.nan]).expand(4, 4).clone()}
    with pytest.raises(MergeError, match=r"'a\.weight': NaN or infinity in m1, or in base"):
        spectrum(tmp_path / "a", [good, bad])
    zero = {"a.weight": torch.zeros(4, 4)}
    with pytest.raises(InputError, match="no model differs from base"):
        spectrum(tmp_path / "b", [zero, zero])
    one = spectrum(tmp_path / "c", [good, zero])
    assert one.power_left["m1"] == [0.0] * rings.RINGS


def test_a_drawing_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is named, and not taken for the terminal."""
    figure = importlib.import_module("matplotlib.figure").Figure()
    monkeypatch.setattr(figure, "savefig", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(MergeError, match=r"s\.png: cannot be written: full"):
        save_figure(figure, tmp_path / "s.png")
    assert not list(tmp_path.iterdir())
