"""What differs between two checkpoints: numbers worked out by hand, and what they must satisfy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from folders import family, near, state, write
from hypothesis import given
from hypothesis import strategies as st

import fastmerge as fm
from fastmerge.engine import diff as module
from fastmerge.errors import InputError

BASE = {"w": torch.tensor([1.0, 1.0, 1.0, 1.0]), "x": torch.tensor([2.0])}
A = {"w": torch.tensor([3.0, 0.0, -4.0, 0.0]), "x": torch.tensor([2.0])}
B = {"w": torch.tensor([3.0, 0.0, 8.0, -5.0]), "x": torch.tensor([2.0])}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    a, b, base = (write(tmp_path / name, tensors) for name, tensors in (("a", A), ("b", B), ("base", BASE)))
    return a, b, base


def test_by_hand(folders: tuple[Path, Path, Path]) -> None:
    """‖a‖ = 5, ‖b‖ = √98, b − a = (0, 0, 12, −5), a·b = 9 − 32."""
    found = fm.diff(*folders[:2])
    w, x = found.tensors
    assert (w.name, w.elements, w.norm_a, w.change, w.relative, w.largest) == ("w", 4, 5.0, 13.0, 2.6, 12.0)
    assert w.norm_b == pytest.approx(math.sqrt(98), rel=1e-15)
    assert w.cosine == pytest.approx(-23 / (5 * math.sqrt(98)), rel=1e-15)
    assert w.same_sign == 0.5
    assert (x.name, x.change, x.relative, x.cosine, x.same_sign) == ("x", 0.0, 0.0, 1.0, 1.0)
    total = found.total
    assert (total.elements, total.change, total.largest, total.same_sign) == (5, 13.0, 12.0, 0.6)
    assert total.norm_a == pytest.approx(math.sqrt(29), rel=1e-15)


def test_task_vectors_by_hand(folders: tuple[Path, Path, Path]) -> None:
    """a = (2, −1, −5, −1), b = (2, −1, 7, −6); b − a stays what it is; x has no task vector at all."""
    w, x = sorted(fm.diff(*folders[:2], base=folders[2]).tensors, key=lambda d: d.name)
    assert w.norm_a == pytest.approx(math.sqrt(31), rel=1e-15)
    assert w.norm_b == pytest.approx(math.sqrt(90), rel=1e-15)
    assert w.cosine == pytest.approx((4 + 1 - 35 + 6) / math.sqrt(31 * 90), rel=1e-15)
    assert (w.change, w.largest, w.same_sign) == (13.0, 12.0, 0.75)
    assert (x.norm_a, x.change, x.relative, x.cosine, x.same_sign) == (0.0, 0.0, 0.0, None, 1.0)


def test_of_itself(tmp_path: Path) -> None:
    base, _ = family(tmp_path)
    found = fm.diff(base, base)
    for one in (found.total, *found.tensors):
        assert (one.change, one.relative, one.largest, one.same_sign, one.nonfinite) == (0.0, 0.0, 0.0, 1.0, 0)
        assert one.cosine == pytest.approx(1.0, rel=1e-12)


@given(seed=st.integers(0, 1000), n=st.integers(1, 300), chunk=st.sampled_from([65_536, 1 << 21]))
def test_against_float64(seed: int, n: int, chunk: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every number against plain float64, in any dtypes and chunks; the order is that of the relative change."""
    root = tmp_path_factory.mktemp("diff")
    shapes = {"x": (n, 3), "y": (n,), "long": (70_001,)}
    a = state(seed, torch.bfloat16, shapes)
    b = {name: t.to(torch.float32) for name, t in near(a, seed + 1).items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_CHUNK", chunk)
        patch.setattr(module, "SLAB", 65_536)
        found = fm.diff(write(root / "a", a), write(root / "b", b))
    assert [d.relative for d in found.tensors] == sorted((d.relative for d in found.tensors), reverse=True)
    every = [("total", *(torch.cat([t[n].flatten() for n in shapes]) for t in (a, b)))]
    numbers = {d.name: d for d in (found.total, *found.tensors)}
    for name, one, other in (*every, *((n, a[n], b[n]) for n in shapes)):
        x, y, own = one.double().flatten(), other.double().flatten(), numbers[name]
        assert own.norm_a == pytest.approx(float(x.norm()), rel=1e-12)
        assert own.norm_b == pytest.approx(float(y.norm()), rel=1e-12)
        assert own.change == pytest.approx(float((y - x).norm()), rel=1e-6)  # b − a is rounded to float32
        assert own.largest == pytest.approx(float((y - x).abs().max()), rel=1e-6)
        assert own.cosine == pytest.approx(float(x @ y / x.norm() / y.norm()), rel=1e-12)
        assert own.same_sign == float((x.sign() == y.sign()).double().mean())


def test_nan_and_integers(tmp_path: Path) -> None:
    """NaN gives no numbers and is counted and listed first; integer tensors that differ are named; JSON is valid."""
    a = {"ids": torch.arange(3), "same": torch.arange(2), "w": torch.ones(4), "z": torch.ones(2)}
    b = a | {"ids": torch.arange(1, 4), "w": torch.tensor([1.0, float("nan"), float("inf"), 1.0])}
    found = fm.diff(write(tmp_path / "a", a), write(tmp_path / "b", b))
    assert found.copied == ["ids"]
    assert found.tensors[0].name == "w"
    assert (found.tensors[0].change, found.tensors[0].largest, found.tensors[0].nonfinite) == (None, None, 2)
    assert found.total.change is None
    assert "NaN" not in json.dumps(found.to_dict())


def test_what_does_not_fit(tmp_path: Path) -> None:
    """The usual clear errors, which name the side, and the usual ways out."""
    base, _ = family(tmp_path, 1)
    other = {f"model.{n}": t for n, t in state(0).items()} | {"model.head.weight": torch.ones(2, 2)}
    b = write(tmp_path / "b", other)
    with pytest.raises(InputError, match=r"B: .*--rename B:model\.="):
        fm.diff(base, b)
    with pytest.raises(InputError, match=r"B: .*head\.weight.*--task-specific"):
        fm.diff(base, b, rename={"B": [("model.", "")]})
    found = fm.diff(base, b, rename={"B": [("model.", "")]}, task_specific=["head.*"])
    assert found.total.change == 0.0
    with pytest.raises(InputError) as caught:
        fm.diff(tmp_path / "absent", tmp_path / "neither")
    assert len(caught.value.problems) == 2


def test_a_renaming_of_nobody(folders: tuple[Path, Path, Path]) -> None:
    with pytest.raises(InputError, match="--rename foo: there is no model 'foo'"):
        fm.diff(*folders[:2], rename={"foo": [("x", "y")]})
