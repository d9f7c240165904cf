"""Whole merges and filters on a GPU, against those of the CPU."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")
pytest.importorskip("pydantic", reason="pydantic is not installed")
from filters import GROUPS, check_group
from folders import family, near, read, state, weights, write
from piped import MANY, crowded, planned

import fastmerge as fm
from fastmerge import gpus
from fastmerge.engine import merge
from fastmerge.engine.devices import Cuda

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")

SHAPES = {
    "model.layers.0.mlp.up.weight": (1501, 700),
    "model.layers.0.mlp.down.weight": (300, 500),
    "model.layers.0.bias": (33,),
    "model.norm.weight": (1,),
    "model.empty": (0, 4),
}
ELEMENTWISE: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"weights": 0.3},
    "ties": {"density": 0.3},
    "dare_ties": {"density": 0.4},
    "della": {"density": 0.5},
    "breadcrumbs": {"density": 0.5},
    "magmax": {},
    "pcb": {"density": 0.3},
    "emr": {},
    "tall_masks": {},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    return family(tmp_path_factory.mktemp("checkpoints"), 3, shapes=SHAPES)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    return family(tmp_path_factory.mktemp("many"), 3, shapes=MANY)


@pytest.mark.parametrize("method", ELEMENTWISE)
def test_elementwise_merges_have_the_bytes_of_the_cpu(
    method: str, checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    for device in ("cpu", "cuda"):
        report = fm.merge(method, *checkpoints, tmp_path / device / "out", ELEMENTWISE[method], device=device)
        assert report.backend == ("cuda" if device == "cuda" else report.backend)
    assert weights(tmp_path / "cpu" / "out") == weights(tmp_path / "cuda" / "out")


@pytest.mark.parametrize("where", ["tmp", "/dev/shm"])
@pytest.mark.parametrize("method", ["task_arithmetic", "emr", "ties", "dare_ties", "della"])
def test_memory_is_used_again_and_again(
    method: str, where: str, many: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes in, is computed, and goes out to disk or memory, while what was there before is still in use."""
    loads = crowded(monkeypatch)
    with tempfile.TemporaryDirectory(dir=None if where == "tmp" else where) as folder:
        for device in ("cpu", "cuda"):
            merge.execute(planned(many, method, Path(folder) / device / "out", 8, device=device))
        assert weights(Path(folder) / "cpu" / "out") == weights(Path(folder) / "cuda" / "out")
    assert len(loads) >= len(MANY)


@pytest.mark.parametrize("method", ["emr", "ties"])
def test_devices_share_a_merge(
    method: str, checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that each take the next tensor the bytes are those of one; where there is one GPU, it is both."""
    one = fm.merge(method, *checkpoints, tmp_path / "one" / "out", ELEMENTWISE[method], device="cuda:0").out
    both = [Cuda("cuda:0"), Cuda(f"cuda:{torch.cuda.device_count() - 1}")]
    monkeypatch.setattr(merge, "open_devices", lambda _: both)
    two = fm.merge(method, *checkpoints, tmp_path / "two" / "out", ELEMENTWISE[method], device="cuda").out
    assert weights(Path(one)) == weights(Path(two))


def test_merges_have_the_memory_of_those_before(checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    """What torch keeps of a merge's memory serves the next of the process."""
    reserved = []
    for turn in range(3):
        fm.merge("emr", *checkpoints, tmp_path / str(turn) / "out", device="cuda")
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[2] <= reserved[0]


@pytest.mark.parametrize("method", ["fr", "free"])
def test_filtered_merges_are_near_those_of_the_cpu(
    method: str, checkpoints: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    """And the same each time."""
    for name, device in (("cpu", "cpu"), ("cuda", "cuda"), ("again", "cuda")):
        fm.merge(method, *checkpoints, tmp_path / name / "out", device=device, dtype="float32")
    expected, found = read(tmp_path / "cpu" / "out"), read(tmp_path / "cuda" / "out")
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=0, atol=1e-5), name
    assert weights(tmp_path / "again" / "out") == weights(tmp_path / "cuda" / "out")


def test_little_memory_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks shrink where the GPU's memory runs out."""
    base = state(0, torch.bfloat16, {"model.up.weight": (4001, 2000)})  # a load of which is 64 MB
    models = {f"m{k}": write(tmp_path / f"m{k}", near(base, k + 1)) for k in range(3)}
    given = write(tmp_path / "base", base), models
    fm.merge("emr", *given, tmp_path / "much" / "out", device="cuda")
    shrunk, forget = [], Cuda.forget
    monkeypatch.setattr(Cuda, "forget", lambda device: shrunk.append(device) or forget(device))
    torch.cuda.empty_cache()
    used = torch.cuda.memory_reserved() + (32 << 20)
    torch.cuda.set_per_process_memory_fraction(used / torch.cuda.get_device_properties(0).total_memory)
    try:
        fm.merge("emr", *given, tmp_path / "little" / "out", device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert shrunk
    assert weights(tmp_path / "much" / "out") == weights(tmp_path / "little" / "out")


def test_the_gpu_is_found() -> None:
    assert gpus.why_not("cuda") is None
    assert gpus.settle("auto")[0].startswith("cuda:")


@pytest.mark.parametrize("group", GROUPS)
def test_filter_is_the_definition(group: str) -> None:
    assert check_group(group, "cuda") > 0
