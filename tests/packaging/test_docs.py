"""The pages: their code runs and does what they say, and what they link to is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import llama
import pytest
import torch
from safetensors.torch import load_file, save_file

import fastmerge as fm

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("*/README.md")),
    *sorted(ROOT.glob("docs/*.md")),
]
CODE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#]+?)(?:#[^)]*)?\)")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pages call BASE, DIR1 and DIR2, and what is merged of them."""
    generator = torch.Generator().manual_seed(0)
    for name in ("BASE", "DIR1", "DIR2"):
        (tmp_path / name).mkdir()
        shapes = {"layers.0.weight": (300, 250), "norm.weight": (48,)}
        weights = {tensor: torch.randn(shape, generator=generator) for tensor, shape in shapes.items()}
        save_file(weights, tmp_path / name / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    for method, out in (("emr", "merged-emr"), ("free", "merged-experts")):
        fm.merge(method, base="BASE", models={"math": "DIR1", "code": "DIR2"}, out=out)
    return tmp_path


def run(name: str) -> dict[str, Any]:
    """The blocks of a page, one after the other."""
    code = CODE.findall(page(name))
    assert code, name
    names: dict[str, Any] = {"__name__": "page"}
    for block in code:
        exec(compile(block, name, "exec"), names)
    return names


def test_method(folder: Path) -> None:
    """Its first block has no more than 20 lines of a method, and what it merges on disk is what it says."""
    first = CODE.findall(page("methods.md"))[0].partition("class Unanimous")[2]
    assert len([line for line in first.splitlines() if line]) <= 20
    run("methods.md")
    base, math, code = (load_file(folder / name / "model.safetensors") for name in ("BASE", "DIR1", "DIR2"))
    merged, equal = (load_file(folder / name / "model.safetensors") for name in ("merged", "equal"))
    vectors = {name: (math[name] - base[name], code[name] - base[name]) for name in base}
    lengths = [torch.cat([vectors[name][k].double().flatten() for name in base]).norm() for k in (0, 1)]
    for name, (one, other) in vectors.items():
        unanimous = torch.where(one * other > 0, (one + other) / 2, 0)
        torch.testing.assert_close(merged[name], base[name] + 0.5 * unanimous)
        mean = sum(lengths) / 2 * (one / lengths[0] + other / lengths[1]) / 2
        torch.testing.assert_close(equal[name], (base[name] + mean).float())


def test_formats(folder: Path) -> None:
    """What is read by hand is what fastmerge makes of the folders."""
    found = run("formats.md")
    for artefact, weights in (("merged-emr", found["weights"]), ("merged-experts", found["backbone"])):
        fm.task(artefact, "math", folder / f"{artefact}-math")
        expected = load_file(folder / f"{artefact}-math" / "model.safetensors")
        assert weights.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.from_numpy(weights[name]).equal(tensor), name


def test_torch(folder: Path) -> None:
    torch.manual_seed(0)
    assert torch.allclose(run("torch.md")["weights"].detach(), torch.tensor([0.75, 0.25]), atol=0.01)


def test_fusion_bench(folder: Path) -> None:
    pytest.importorskip("fusion_bench", reason="fusion-bench is not installed")
    found = run("fusion_bench.md")
    assert found["model"].current_task == "math"
    assert not found["merged"].weight.equal(found["models"]["_pretrained_"].weight)


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What pages of language models take as given, or leave out: tiny ones, and folders merged of them."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    monkeypatch.chdir(tmp_path)
    llama.family(tmp_path, {"DIR1": 1, "DIR2": 2, "DIR3": 3}, layers=1)["base"].rename("BASE")
    fm.merge("free", base="BASE", models={"math": "DIR1", "code": "DIR2"}, out="merged-experts")
    ids = torch.randint(llama.VOCAB, (12, 8), generator=torch.Generator().manual_seed(0))
    names = {"fm": fm, "input_ids": ids, "batch": ids, "mask": torch.ones_like(ids), "labels": ["math", "code"] * 6}
    names |= {name: [{"input_ids": ids[:2]}] for name in ("batches", "math_batches", "code_batches")}
    names |= {"model": transformers.AutoModelForCausalLM.from_pretrained("BASE"), "my_loss": fm.fw.causal_lm}
    for folder, state, tensor in (
        ("BASE", "base_state", "base"),
        ("DIR1", "state1", "model1"),
        ("DIR2", "state2", "model2"),
    ):
        names[state] = load_file(f"{folder}/model.safetensors")
        names[tensor] = names[state]["lm_head.weight"]
    return names


@pytest.mark.parametrize("name", ["README.md", "docs/frank_wolfe.md", "docs/runtime.md"])
def test_language_models(name: str, given: dict[str, Any]) -> None:
    """Blocks one after the other; those of FW-Merging rebuild the bits that they wrote."""
    if name == "docs/runtime.md":
        fm.merge("emr", base="BASE", models={"math": "DIR1", "code": "DIR2"}, out="merged-emr")
    for block in CODE.findall((ROOT / name).read_text(encoding="utf-8")):
        shortened = block.replace("(...)", "(batch)").replace(
            "ada_merging(model, pool, batches", "ada_merging(model, pool, batches, steps=2"
        )
        exec(compile(shortened, name, "exec"), given)
    if name == "docs/frank_wolfe.md":
        merged, again = (load_file(f"{folder}/model.safetensors") for folder in ("merged", "again"))
        assert all(tensor.equal(again[name]) for name, tensor in merged.items())


@pytest.mark.parametrize("file", PAGES, ids=lambda f: str(f.relative_to(ROOT)))
def test_links(file: Path) -> None:
    """Within the project; every page of docs is linked from the README."""
    links = [link for link in LINK.findall(file.read_text(encoding="utf-8")) if "://" not in link]
    missing = [link for link in links if not (file.parent / link).exists()]
    assert not missing
    if file.parent.name == "docs":
        assert f"](docs/{file.name})" in (ROOT / "README.md").read_text(encoding="utf-8")
