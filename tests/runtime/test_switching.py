"""Switching tasks in place: the bits that `fastmerge task` and the formula give, whatever came before."""

from __future__ import annotations

import copy
import gc
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from folders import read
from live import SCALES, TASKS, Net, bits, changes, emr, free, same, stored
from tensors import BF16, F32, F64, assert_same_bits
from torch import Tensor, nn

import fastmerge as fm
from fastmerge import dispatch, gpus, ops
from fastmerge.errors import InputError, MergeError
from fastmerge.runtime.load import find_device, warn_once


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emr(tmp_path_factory.mktemp("emr"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return free(tmp_path_factory.mktemp("free"))


def with_experts(model: nn.Module, active: dict[str, float], dtype: torch.dtype) -> dict[str, Tensor]:
    """backbone + Σ weight · scale · values, in the order of the tasks, rounded once."""
    wide = F64 if dtype == F64 else F32
    expected = {name: t.clone() for name, t in stored(model).items()}
    every = changes(expected)
    for name, theta in expected.items():
        if not theta.is_floating_point():
            continue
        total, touched = torch.zeros(theta.shape, dtype=wide), torch.zeros(theta.shape, dtype=torch.bool)
        for task in [t for t in TASKS if t in active]:
            where, values = every[task][name]
            scale = torch.tensor(active[task] * SCALES[task], dtype=wide)
            total += torch.where(where, scale * values.to(wide), 0)
            touched |= where
        theta[touched] = (theta.to(wide) + total).to(dtype)[touched]
    return expected


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "apart"])
def test_emr_gives_the_bits_of_fastmerge_task(tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
    artefact = emr(tmp_path, dtype, tied)
    model = Net(9, dtype, tied)
    where = {name: p.data_ptr() for name, p in model.named_parameters()}
    live = fm.runtime.load(artefact, model)
    assert live.current is None
    for task in ["law", "math", None, "code", "math"]:
        live.set_task(task)
        assert live.current == task
        if task is not None:
            fm.task(artefact, task, tmp_path / "written", overwrite=True)
        expected = read(tmp_path / "base" if task is None else tmp_path / "written")
        for name, tensor in expected.items():
            assert_same_bits(model.state_dict()[name], tensor, f"{task} {name}")
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == where
    assert model.steps.item() == 0, "integers are base's"
    assert model.cache[0].item() == 9, "what is not stored stays"
    assert (model.out.weight is model.embed.weight) == tied


@pytest.mark.parametrize("dtype", [BF16, F32, F64], ids=str)
def test_experts_give_the_formula(tmp_path: Path, dtype: torch.dtype) -> None:
    """One expert or several with weights, into a model of another dtype as well."""
    path = free(tmp_path)
    model = Net(9, dtype)
    live = fm.runtime.load(path, model)
    backbone = Net(0).to(dtype)
    for active in ({"code": 1.0}, {"law": 0.3, "math": 2.0}, {"math": 1.0, "code": 0.5, "law": -1.0}, {}):
        live.set_task(active)
        for name, tensor in with_experts(backbone, active, dtype).items():
            assert_same_bits(model.state_dict()[name], tensor, f"{active} {name}")


def test_a_thousand_changes_end_with_every_original_bit(folder: Path) -> None:
    """And each of them with the bits that its set of experts has whatever came before."""
    model = Net(9)
    live = fm.runtime.load(folder, model)
    original, chance, seen = bits(model), random.Random(0), {}
    for _ in range(1000):
        present = live.current
        active = [] if present is None else [present] if isinstance(present, str) else list(present)
        task = chance.choice(TASKS)
        if task in active:
            live.remove_expert(task)
        else:
            live.add_expert(task, chance.choice([1.0, 0.5]))
        state = repr(live.current)
        assert same(model, seen.setdefault(state, bits(model))), state
    for task in TASKS:
        live.set_task(task)
        live.remove_expert(task)
    assert live.current is None
    assert same(model, original)
    assert len(seen) > 20


@pytest.mark.parametrize("kind", ["artefact", "folder"])
def test_any_load_gives_the_same_model(kind: str, request: pytest.FixtureRequest) -> None:
    """Loaded with a task, or switched to it; under no_grad and inference_mode; with parameters that need gradients."""
    path = request.getfixturevalue(kind)
    first = fm.runtime.load(path, Net(1), task="code")
    second = fm.runtime.load(path, Net(2))
    with torch.inference_mode():
        second.set_task("code")
    assert same(second.model, bits(first.model))
    ids = torch.arange(5)
    assert torch.equal(first(ids), first.model(ids))
    first(ids).sum().backward()
    assert first.model.up.weight.grad is not None
    assert not any(p.is_inference() for p in second.parameters())


@pytest.mark.parametrize("kind", ["artefact", "folder"])
def test_a_model_made_in_inference_mode(kind: str, request: pytest.FixtureRequest) -> None:
    """Its tensors can be written to in that mode alone; it is switched within it, and outside."""
    path = request.getfixturevalue(kind)
    expected = {task: bits(fm.runtime.load(path, Net(1), task=task).model) for task in TASKS}
    with torch.inference_mode():
        live = fm.runtime.load(path, Net(1), task="law")
        live.set_task("math")
    for task in ("code", "law"):
        live.set_task(task)
        assert same(live.model, expected[task])
    with torch.inference_mode():
        live.set_task("math")
    assert same(live.model, expected["math"])


@pytest.mark.parametrize("kind", ["artefact", "folder"])
def test_no_gradients_through_another_task(kind: str, request: pytest.FixtureRequest) -> None:
    """What was computed under one task does not go backward under the next."""
    live = fm.runtime.load(request.getfixturevalue(kind), Net(1, F32), task="law")
    loss = live(torch.arange(5)).sum()
    live.set_task("math")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("kind", ["artefact", "folder"])
def test_with_task_comes_back(kind: str, request: pytest.FixtureRequest) -> None:
    live = fm.runtime.load(request.getfixturevalue(kind), Net(1), task="law")
    before = bits(live.model)
    with live.task("math") as inside:
        assert inside.current == "math"
        assert not same(live.model, before)
    assert (live.current, same(live.model, before)) == ("law", True)
    with pytest.raises(ZeroDivisionError), live.task(None):
        raise ZeroDivisionError
    assert (live.current, same(live.model, before)) == ("law", True)


def test_strided_parameters(folder: Path) -> None:
    """A parameter that is not contiguous has the same values, and keeps its strides."""
    model, plain = Net(1), Net(1)
    model.up.weight = nn.Parameter(model.up.weight.detach().t().contiguous().t())
    live, expected = fm.runtime.load(folder, model), fm.runtime.load(folder, plain)
    for task in ("math", "law", None):
        live.set_task(task)
        expected.set_task(task)
        assert torch.equal(model.up.weight, plain.up.weight)
    assert model.up.weight.stride() == (1, 9000)


def test_a_model_may_change_its_dtype(folder: Path) -> None:
    """After .float(), what is restored is the backbone in that dtype."""
    live = fm.runtime.load(folder, Net(1), task="math")
    live.float()
    live.set_task(None)
    assert same(live.model, bits(Net(0, BF16).float()))
    live.set_task("code")
    for name, tensor in with_experts(Net(0).float(), {"code": 1.0}, F32).items():
        assert_same_bits(live.state_dict()[name], tensor, name)


def test_the_model_answers_for_what_the_wrapper_lacks(folder: Path) -> None:
    live = fm.runtime.load(folder, Net(1))
    assert live.embed is live.model.embed
    assert live.eval() is live
    assert not live.model.training
    assert list(live.state_dict()) == list(live.model.state_dict())
    with pytest.raises(AttributeError, match="'Net' object has no attribute 'nothing'"):
        _ = live.nothing


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("resident", [False, True], ids=["", "resident"])
@pytest.mark.parametrize("kind", ["artefact", "folder"])
def test_on_a_gpu(kind: str, resident: bool, request: pytest.FixtureRequest) -> None:
    """The bits of the CPU; moved there before or after loading, and back."""
    path = request.getfixturevalue(kind)
    here, there = fm.runtime.load(path, Net(1)), fm.runtime.load(path, Net(1), device="cuda", resident=resident)
    for task in ("math", "law", None, "law", "math", "law"):
        here.set_task(task)
        there.set_task(task)
        assert same(copy.deepcopy(there.model).cpu(), bits(here.model)), task
    for task in ("math", None, "law"):
        here.set_task(task)
        there.set_task(task)
        assert same(there.model.cpu(), bits(here.model)), task
        there.model.cuda()
    here.model.cuda()
    here.set_task("code")
    there.set_task("code")
    assert same(here.model.cpu(), bits(there.model.cpu()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("kind", ["artefact", "folder"])
def test_on_a_gpu_by_a_graph(kind: str, request: pytest.FixtureRequest) -> None:
    """A switch that was made ready is captured, and gives the bits of the CPU each time that it is replayed."""
    path = request.getfixturevalue(kind)
    here, there = fm.runtime.load(path, Net(1)), fm.runtime.load(path, Net(1), device="cuda", resident=True)
    for live in (here, there):
        for task in ("math", "law", "math"):
            live.set_task(task)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        there.set_task("law")
    assert same(copy.deepcopy(there.model).cpu(), bits(here.model)), "nothing is changed but by a replay"
    here.set_task("law")
    for _ in range(2):
        graph.replay()
        assert same(copy.deepcopy(there.model).cpu(), bits(here.model))
        there.set_task("math")


@pytest.mark.parametrize("kind", ["artefact", "folder"])
def test_a_resident_switch_only_launches(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made ready once; then nothing is called that a CUDA graph could not capture."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from compiled import Nothing, compiling

    tasks = ["law", "math", None, "math"] if kind == "folder" else ["law", "math"]  # an artefact's base is copied
    with compiling(90) as found:
        live = fm.runtime.load(request.getfixturevalue(kind), Net(1), resident=True)
        for task in ["math", *tasks]:
            live.set_task(task)
        assert found
        for again in ("modulation", "scattering"):
            monkeypatch.delattr(ops, again)
        with Nothing():
            for task in tasks:
                live.set_task(task)


@pytest.mark.parametrize("kind", ["artefact", "folder"])
def test_a_module_of_another_shape_is_not_written_to(kind: str, request: pytest.FixtureRequest) -> None:
    """Though an expert's elements are fewer than it has."""
    live = fm.runtime.load(request.getfixturevalue(kind), Net(1))
    live.model.up = nn.Linear(8, 9001, bias=False).to(BF16)
    before = live.model.up.weight.clone()
    with pytest.raises((InputError, MergeError), match=r"9001, 8\].*9000, 8\]"):
        live.set_task("math")
    assert torch.equal(live.model.up.weight, before)


def test_misuse_changes_nothing(artefact: Path, folder: Path) -> None:
    experts, masks = fm.runtime.load(folder, Net(1), task="math"), fm.runtime.load(artefact, Net(1), task="math")
    before, masked = bits(experts.model), bits(masks.model)
    for call, expected in (
        (lambda: experts.set_task("maths"), "did you mean 'math'"),
        (lambda: experts.set_task({"math": 1.0, "cod": 1.0}), "did you mean 'code'"),
        (lambda: experts.add_expert("code", float("nan")), "weight is nan"),
        (lambda: experts.add_expert("code", 1e39), r"weight is 1e\+39; expected a number that float32"),
        (lambda: experts.add_expert("code", "1"), "weight: expected a number, not '1'"),  # type: ignore[arg-type]
        (lambda: experts.set_task(["math"]), "a task is a name"),  # type: ignore[arg-type]
        (lambda: experts.remove_expert("code"), "not in force; those are: math"),
        (lambda: masks.set_task({"math": 0.5}), "one task at a time"),
        (lambda: masks.add_expert("code"), "one task at a time"),
    ):
        with pytest.raises(InputError, match=expected):
            call()
    assert same(experts.model, before)
    assert same(masks.model, masked)
    assert experts.current == masks.current == "math"


def test_base_of_another_place(tmp_path: Path) -> None:
    """Where base has moved it is named; another model with the same header is told apart."""
    artefact = emr(tmp_path)
    moved = (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="does not exist"):
        fm.runtime.load(artefact, Net(1))
    fm.runtime.load(artefact, Net(1), base=moved)
    with pytest.raises(InputError, match="not the base model it was made with") as caught:
        fm.runtime.load(artefact, Net(1), base=tmp_path / "law")
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "apart"])
def test_resident_artefacts_give_the_same_bits(tmp_path: Path, tied: bool) -> None:
    """Made ready once a task; again where the model has changed its dtype, or its memory."""
    path = emr(tmp_path, BF16, tied)
    models = [Net(9, BF16, tied) for _ in range(2)]
    plain, resident = (fm.runtime.load(path, m, resident=r) for m, r in zip(models, (False, True), strict=True))
    for dtype in (BF16, F32):
        for model in models:
            model.to(dtype)
        for task in ["law", "math", None, "math", "law"]:
            plain.set_task(task)
            resident.set_task(task)
            assert same(models[1], bits(models[0])), task


@pytest.mark.parametrize("kind", ["artefact", "folder"])
def test_a_moved_model_leaves_nothing_behind(kind: str, request: pytest.FixtureRequest) -> None:
    """Switches that were ready for its memory go, and with them what they held of it."""
    live = fm.runtime.load(request.getfixturevalue(kind), Net(1), resident=True)
    for task in ("math", "law", "math", "law"):
        live.set_task(task)
    before = {p.untyped_storage().data_ptr() for p in live.model.parameters()}
    live.model.double()
    live.set_task("math")
    gc.collect()
    tensors = [x for x in gc.get_objects() if type(x) is Tensor and x.dtype != F64 and x.device.type != "meta"]
    assert not before & {x.untyped_storage().data_ptr() for x in tensors if x.numel()}


def test_resident_experts_give_the_same_bits(tmp_path: Path) -> None:
    """Made ready once for a task and the one before; several with weights in between, and another dtype."""
    path = free(tmp_path)
    models = [Net(9, BF16) for _ in range(2)]
    plain, resident = (fm.runtime.load(path, m, resident=r) for m, r in zip(models, (False, True), strict=True))
    order: list[str | dict[str, float] | None] = ["law", "math", None, "math", {"law": 0.5, "code": 2.0}, "law", "math"]
    for dtype in (BF16, F32):
        for model in models:
            model.to(dtype)
        for task in order:
            plain.set_task(task)
            resident.set_task(task)
            assert same(models[1], bits(models[0])), task


@pytest.mark.parametrize(
    ("driver", "hardware", "zeros", "lacking", "place", "says"),
    [
        (False, False, None, None, "cpu", ""),
        (False, True, None, None, "cpu", "the model is on the CPU, though there is a GPU: "),
        (True, True, "no kernel image is available", None, "cpu", "though there is a GPU: CUDA error: no kernel image"),
        (True, True, None, "sm_70 has no bfloat16", "cuda:0", "by PyTorch on this GPU, which is slower: sm_70 has no"),
        (True, True, None, None, "cuda:0", ""),
    ],
    ids=["no GPU", "no driver", "too old for PyTorch", "too old for fastmerge", "a GPU"],
)
def test_where_a_model_goes_by_itself(
    driver: bool,
    hardware: bool,
    zeros: str | None,
    lacking: str | None,
    place: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where PyTorch can compute, since a model mostly does that; what keeps a GPU from its best is told, once."""

    def allocated(*_: object, device: str) -> Any:
        if zeros:
            raise RuntimeError(f"CUDA error: {zeros}\nand more")
        return SimpleNamespace(device=torch.device(device, 0))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: driver)
    monkeypatch.setattr(torch, "zeros", allocated)
    monkeypatch.setattr(gpus, "HARDWARE", (Path("/" if hardware else "/nowhere"),))
    monkeypatch.setattr(dispatch, "why_not", lambda *_: lacking)
    warn_once.cache_clear()
    for _ in range(2):
        assert find_device("auto") == torch.device(place)
    warn_once.cache_clear()
    assert [says in record.message for record in caplog.records] == ([True] if says else [])
