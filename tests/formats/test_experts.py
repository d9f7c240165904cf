"""The folder of experts: what it holds, and every way in which one from a stranger may be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from experts import add_experts, experts_folder, sparse
from folders import state, write
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tensors import expert_of
from torch import Tensor

from fastmerge.errors import InputError
from fastmerge.formats.checkpoint import open_checkpoint
from fastmerge.formats.experts import ExpertsFolder, elements_problem, expert_layout
from fastmerge.formats.mapping import Inputs
from fastmerge.formats.safetensors import read_header

BACKBONE = state(0)
FILE = "experts/t0.safetensors"


def read(folder: Path, task: str = "t0") -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    opened = ExpertsFolder(folder)
    file = folder / "experts" / f"{task}.safetensors"
    return opened.read(task, Inputs([read_header(file)]))


def test_reads_what_was_written(tmp_path: Path) -> None:
    folder = experts_folder(tmp_path / "free", BACKBONE, scales={"t1": 2.5})
    opened = ExpertsFolder(folder)
    assert opened.tasks == ["t0", "t1", "t2"]
    assert opened.record.experts["t1"].scale == 2.5
    for name, (where, values) in sparse(BACKBONE, 2).items():
        expected = expert_of(where.flatten(), values.flatten())
        assert all(torch.equal(a, b) for a, b in zip(read(folder, "t1")[name], expected, strict=True))


def test_layout_is_the_file(tmp_path: Path) -> None:
    """The header planned from sizes alone is one that the reader takes; an expert of 1 % takes about 2 % of bf16."""
    n, k = 3_000_000, 30_000
    layout = expert_layout("t0", [("a", n, k, "BF16"), ("empty", 0, 0, "BF16"), ("b", 70_000, 700, "BF16")])
    assert layout.files[0].name == FILE
    assert layout.total_bytes < 0.025 * 2 * (n + 70_000)
    backbone = {"a": torch.zeros(n), "b": torch.zeros(70_000), "empty": torch.zeros(0)}
    folder = experts_folder(tmp_path / "free", backbone, 1)
    data = bytearray(layout.files[0].size)
    data[: len(layout.files[0].header)] = layout.files[0].header
    (folder / FILE).write_bytes(data)
    stored = ExpertsFolder(folder).experts["t0"]
    assert {name: s.values.shape for name, s in stored.items()} == {"a": (k,), "b": (700,), "empty": (0,)}


def change(parts: dict[str, Tensor], name: str, value: Callable[[Tensor], Tensor] | None) -> dict[str, Tensor]:
    return {n: value(t) if n == name and value else t for n, t in parts.items() if n != name or value}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("norm.weight/values", None, "expected counts, offsets, values, found counts, offsets"),
        ("norm.weight/values", lambda t: t.int(), "values must be BF16 or F16 or F32 or F64"),
        ("norm.weight/offsets", lambda t: t.int(), "offsets must be U16"),
        ("norm.weight/offsets", lambda t: t[:-1], "offsets must be U16"),
        ("norm.weight/counts", lambda t: torch.cat([t, t]), r"counts must be I32 \[1\], it is I32 \[2\]"),
        ("norm.weight/counts", lambda t: t + 1, "counts add up to"),
        ("norm.weight/offsets", lambda t: t.int().flip(0).to(torch.uint16), "do not increase"),
        ("norm.weight/offsets", lambda t: torch.cat([t[:-1], torch.tensor([8], dtype=torch.uint16)]), "beyond"),
    ],
)
def test_damaged_parts(tmp_path: Path, name: str, value: Callable[[Tensor], Tensor] | None, expected: str) -> None:
    """One clear error that names expert, file and tensor."""
    changes: Mapping[str, Any] = {"norm.weight": (torch.arange(8) % 2 == 0, torch.ones(8).bfloat16())}
    folder = add_experts(write(tmp_path / "free", BACKBONE), {"t0": changes})
    save_file(change(load_file(folder / FILE), name, value), folder / FILE)
    with pytest.raises(InputError, match=expected) as caught:
        read(folder)
    assert len(caught.value.problems) == 1
    assert all(part in str(caught.value) for part in ("t0", FILE, "'norm.weight'"))


def cut(folder: Path) -> None:
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-3])


def rename_tensor(folder: Path) -> None:
    save_file({n.replace("norm", "nrom"): t for n, t in load_file(folder / FILE).items()}, folder / FILE)


def other_backbone(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    save_file(state(9), folder / "model.safetensors", {"format": "pt"})


def record(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / "experts.json").read_text())
        for key, value in changes.items():
            content[key] = {**content[key], **value} if isinstance(value, dict) else value
        (folder / "experts.json").write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (cut, "cut off"),
        (lambda folder: (folder / FILE).unlink(), "missing"),
        (lambda folder: (folder / "experts.json").unlink(), "no folder of experts"),
        (rename_tensor, "did you mean 'norm.weight'"),
        (other_backbone, "not the backbone"),
        (record(tasks=["t0", "t0"]), "two tasks have one name"),
        (record(tasks=["t0", "t1"]), "its experts are not those of its tasks"),
        (record(tasks=["../t0"]), "leave the folder"),
        (record(experts={"t0": {"file": "../x", "scale": 1, "density": 1, "scope": "row"}}), "leave the folder"),
        (record(experts={"t0": {"file": "x", "scale": float("nan"), "density": 1, "scope": "row"}}), "finite"),
        (record(version=2), "version"),
    ],
)
def test_damaged_folders(tmp_path: Path, damage: Callable[[Path], None], expected: str) -> None:
    folder = experts_folder(tmp_path / "free", BACKBONE)
    damage(folder)
    with pytest.raises(InputError, match=expected) as caught:
        ExpertsFolder(folder)
    assert len(caught.value.problems) == 1


def test_base_must_be_the_one_the_experts_were_cut_from(tmp_path: Path) -> None:
    """Another fine-tune with the very same header is told apart."""
    base, other = write(tmp_path / "base", state(5)), write(tmp_path / "other", state(6))
    folder = ExpertsFolder(experts_folder(tmp_path / "free", BACKBONE, base=base))
    folder.check_base(open_checkpoint(base, "base"), "base=")
    with pytest.raises(InputError, match="not the base model") as caught:
        folder.check_base(open_checkpoint(other, "base"), "base=")
    assert len(caught.value.problems) == 1


@given(st.integers(1, 200_000), st.data())
def test_any_choice_of_elements_is_accepted_and_no_other(n: int, data: st.DataObject) -> None:
    """What describes elements passes; with one offset moved to another's place, or one block's count, it does not."""
    chosen = data.draw(st.sets(st.integers(0, n - 1), min_size=2, max_size=30) if n > 1 else st.just({0}))
    where = torch.zeros(n, dtype=torch.bool)
    where[sorted(chosen)] = True
    expert = expert_of(where, torch.zeros(n))
    assert elements_problem(n, expert.counts, expert.offsets) is None
    j = data.draw(st.integers(0, len(chosen) - 1))
    beyond = expert.offsets.int()
    if expert.counts[-1]:
        beyond[-1] = n - (len(expert.counts) - 1) * 65_536
        if beyond[-1] < 65_536:
            assert elements_problem(n, expert.counts, beyond.to(torch.uint16)) is not None
    counts = expert.counts.clone()
    counts[min(chosen) // 65_536] -= 1
    assert elements_problem(n, counts, expert.offsets) is not None
    assert elements_problem(n, expert.counts, torch.cat([expert.offsets.int(), beyond[j : j + 1]]).to(torch.uint16))
