"""What a run leaves: coefficients in the hull, of which the same bits are made again; records, folders, drawings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import lora, write_adapter
from folders import content, read, write
from hulls import Problem, Weights
from live import Net, bits, same
from safetensors.torch import save_file
from tensors import BF16
from torch import Tensor, nn

import fastmerge as fm
from fastmerge.errors import InputError, MergeError
from fastmerge.formats import folder as folder_files

STEPS = {
    "hard": {"steps": 4},
    "fixed": {"steps": 4, "step": "2/(t+2)"},
    "layers": {"steps": 4, "lmo": "layer", "coefficients": "layer", "inner_steps": 4},
    "soft": {"steps": 3, "inner_steps": 6, "variant": "soft", "coefficients": "layer", "layers": "block"},
    "paper": {"steps": 3, "variant": "soft", "simplex": "paper", "top_k": 2},
}
IDS = torch.arange(40).view(4, 10) % 50


def net_loss(model: nn.Module, ids: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(ids).flatten(0, 1).float(), ids.flatten())


def nets(root: Path, k: int = 4, dtype: torch.dtype = BF16) -> dict[str, Path]:
    """Folders of nets whose output is tied to their embeddings."""
    return {f"n{i}": write(root / f"n{i}", _stored(Net(i + 1, dtype))) for i in range(k)}


def _stored(net: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach() for n, t in net.state_dict().items() if n != "out.weight"}


def run(model: nn.Module, pool: Any, **options: Any) -> fm.fw.Result:
    return fm.frank_wolfe(model, pool, net_loss, [IDS[:2], IDS[2:]], **options)


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
@pytest.mark.parametrize("options", STEPS.values(), ids=STEPS)
def test_coefficients_make_the_same_bits_again(options: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    """At every step they are in the hull; from their JSON, without data, comes the very model."""
    pool, model = nets(tmp_path, dtype=dtype), Net(0, dtype)
    initial = {n: t.clone() for n, t in model.state_dict().items()}

    def in_the_hull(_: fm.fw.Step) -> None:
        rows = fm.fw.Record.read(tmp_path / "run.json").coefficients
        assert rows is not None
        for row in rows:
            assert min(row) >= 0
            assert abs(sum(row) - 1) < 1e-12

    result = run(model, pool, checkpoint=tmp_path / "run.json", callback=in_the_hull, **options)
    assert len(result.steps) > 1
    assert repr(result) == f"Result(frank_wolfe of initial, n0, n1, n2, n3, loss={result.loss})"  # and no model of 13B
    result.save(tmp_path / "saved.json")
    again = fm.fw.rebuild(tmp_path / "saved.json", init=initial)
    assert again.keys() == {n for n, t in initial.items() if t.is_floating_point()}
    copy = Net(0, dtype)
    copy.load_state_dict(again, strict=False)
    assert same(copy, bits(model))
    assert not same(model, bits(Net(0, dtype)))


def test_a_hundred_members(tmp_path: Path) -> None:
    """More than an op takes at once; every one has its part, and the sum is that of all in their order."""
    initial, *pool = ({"a": torch.randn(3, 40), "b": torch.randn(100_000)} for _ in range(101))

    def loss(model: nn.Module, _: object) -> Tensor:
        return torch.stack([p.square().sum() for p in model.parameters()]).sum()

    model = Weights(initial)
    result = fm.frank_wolfe(model, pool, loss, [None], variant="soft", top_k=101, steps=1)
    (row,) = result.coefficients.values()
    assert sum(value > 0 for value in row.values()) == 101
    expected = torch.zeros(())
    for value, state in zip(row.values(), [initial, *pool], strict=True):
        expected = expected + torch.tensor(value, dtype=torch.float32) * state["b"]
    assert torch.equal(expected, model.state_dict()["b"])


def test_a_folder_like_any_other(tmp_path: Path) -> None:
    """Written by the candidates' names, with what is not merged, and records; made again to the bit."""
    pool = nets(tmp_path)
    base = write(tmp_path / "base", _stored(Net(0)), {"model_type": "net", "torch_dtype": "float32"})
    (base / "tokenizer.json").write_text("{}")
    model = Net(0)
    result = run(model, pool, init=base, **STEPS["layers"])
    report = result.write(tmp_path / "out")
    assert report.models == [*pool]
    for name, tensor in read(tmp_path / "out").items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert read(tmp_path / "out").keys() == _stored(model).keys()
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "bfloat16"
    assert (tmp_path / "out/tokenizer.json").is_file()
    fm.fw.rebuild(tmp_path / "out", out=tmp_path / "again")
    first, second = content(tmp_path / "out"), content(tmp_path / "again")
    first.pop("README.md"), second.pop("README.md")  # which have the folders' names
    assert first == second
    with pytest.raises(InputError, match="exists already"):
        result.write(tmp_path / "out")
    found = fm.verify(tmp_path / "out")
    assert any("not merged again" in note for note in found.notes)
    (tmp_path / "out/model.safetensors").write_bytes(b"")
    with pytest.raises(fm.errors.VerifyError, match=r"model\.safetensors"):
        fm.verify(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"identities": {"m0": "here"}}, "identities.m0: Input should be"),
        ({"identities": {"m0": {"source": 3, "files": []}}}, "identities.m0.source: Input should be"),
        ({"candidates": ["initial", "m0", "m0"]}, "two candidates have one name"),
        ({"coefficients": [[0.5, 0.6, 0.0]]}, "with the sum 1"),
        ({"rows": ["model", "more"]}, "has 1 rows of coefficients for 2"),
    ],
)
def test_damaged_records(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    states = {f"m{k}": Net(k + 1).state_dict() for k in range(2)}
    run(Net(0), states, **STEPS["hard"]).save(tmp_path / "run.json")
    told = json.loads((tmp_path / "run.json").read_text())
    assert told["candidates"] == ["initial", "m0", "m1"]
    (tmp_path / "run.json").write_text(json.dumps(told | change))
    with pytest.raises(InputError, match=says):
        fm.fw.rebuild(tmp_path / "run.json", states, Net(0).state_dict())


def test_rebuilding_needs_the_very_candidates(tmp_path: Path) -> None:
    pool = nets(tmp_path)
    result = run(Net(0), pool, **STEPS["hard"])
    (row,) = result.coefficients.values()
    used = [name for name in pool if row[name]]
    assert len(used) < len(pool)
    with pytest.raises(InputError, match=r"initial: was in memory, and is needed again; pass it \(init=\)"):
        fm.fw.rebuild(result.record)
    moved = {name: (tmp_path / name).rename(tmp_path / f"{name}-moved") for name in used}
    for name in {*pool} - {*used}:
        (tmp_path / name / "model.safetensors").unlink()  # its coefficient is 0
    again = fm.fw.rebuild(result.record, moved, init=Net(0).state_dict())
    assert all(torch.equal(t, result.state_dict[n]) for n, t in again.items())
    other = write(tmp_path / "other", _stored(Net(9)))
    with pytest.raises(InputError, match=f"{used[0]}: .*other is not the checkpoint that was merged"):
        fm.fw.rebuild(result.record, moved | {used[0]: other}, init=Net(0).state_dict())


@pytest.mark.parametrize("options", [STEPS["layers"], STEPS["soft"]], ids=["layers", "soft"])
def test_resumed_runs_end_as_others(options: dict[str, Any], tmp_path: Path) -> None:
    """After any step: the same bits, and the same record but for its times."""
    pool, file = nets(tmp_path), tmp_path / "run.json"
    whole = run(Net(0), pool, **options)

    class Stop(BaseException):
        pass

    def stop(_: fm.fw.Step) -> None:
        raise Stop

    for _ in range(options["steps"] - 1):
        with pytest.raises(Stop):
            run(Net(0), pool, checkpoint=file, resume=True, callback=stop, **options)
    model = Net(0)
    resumed = run(model, pool, checkpoint=file, resume=True, **options)
    assert same(model, bits(whole.model))
    for record in (whole.record, resumed.record):
        for step in record.steps:
            step.seconds = {}
    assert resumed.record == whole.record
    more = run(Net(0), pool, checkpoint=file, resume=True, **options | {"steps": options["steps"] + 1})
    longer = run(Net(0), pool, **options | {"steps": options["steps"] + 1})
    assert same(more.model, bits(longer.model))
    assert len(more.steps) == len(longer.steps)
    with pytest.raises(InputError, match=r"tolerance was 0\.0, is 0\.5"):
        run(Net(0), pool, checkpoint=file, resume=True, tolerance=0.5, **options)
    with pytest.raises(InputError, match="candidates has changed"):
        run(Net(0), {"other": pool["n0"]}, checkpoint=file, resume=True, **options)


def test_a_record_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file before stays, nothing lies beside it, and the model is at the step that was done."""
    pool = nets(tmp_path, 2)
    file = tmp_path / "records" / "run.json"
    file.parent.mkdir()
    before = run(Net(0), pool, steps=1, checkpoint=file)
    written = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_files.os, "replace", full)
    model = Net(0)
    with pytest.raises(MergeError, match=r"run\.json: cannot be written: No space left on device; mend that"):
        run(model, pool, steps=2, checkpoint=file, resume=True)
    assert same(model, bits(run(Net(0), pool, steps=2).model))
    with pytest.raises(MergeError, match=r"run\.json: cannot be written"):
        before.save(file)
    assert (file.read_bytes(), [*file.parent.iterdir()]) == (written, [file])
    with pytest.raises(InputError, match="nowhere is no folder"):
        before.save(tmp_path / "nowhere" / "run.json")


def test_two_who_write_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the same time, as processes of two containers, whose numbers may be equal: the file is the last one's."""
    file, replace = tmp_path / "run.json", os.replace

    def meanwhile(scratch: Path, target: Path) -> None:
        monkeypatch.setattr(folder_files.os, "replace", replace)
        folder_files.write_whole(file, b"another's")
        assert file.read_bytes() == b"another's"
        replace(scratch, target)

    monkeypatch.setattr(folder_files.os, "replace", meanwhile)
    folder_files.write_whole(file, b"ours")
    assert file.read_bytes() == b"ours"
    assert list(tmp_path.iterdir()) == [file]


def test_ends(tmp_path: Path) -> None:
    """By the gap, by the number of steps, by the caller."""
    pool = nets(tmp_path)
    assert run(Net(0), pool, steps=2).record.ended == "steps"
    assert run(Net(0), pool, tolerance=1e9).record.ended == "gap"
    assert run(Net(0), pool, callback=lambda step: step.number == 1).steps[-1].number == 1
    stalled = run(Net(0), {"itself": Net(0).state_dict()})
    assert stalled.record.ended == "gap"
    assert same(stalled.model, bits(Net(0)))


@pytest.mark.parametrize("options", STEPS.values(), ids=STEPS)
def test_drawn(options: dict[str, Any], tmp_path: Path) -> None:
    result = run(Net(0), nets(tmp_path), **options)
    result.draw(tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="exists already"):
        result.draw(tmp_path / "run.png")


@pytest.mark.parametrize("options", [STEPS["hard"], STEPS["soft"]], ids=["hard", "soft"])
def test_a_model_with_an_adapter_is_a_candidate_as_the_model_it_makes(options: dict[str, Any], tmp_path: Path) -> None:
    pool = nets(tmp_path, 2)
    own = lora({"up": (9000, 8), "down": (8, 9000)}, 2, 1)
    adapter = write_adapter(tmp_path / "adapter", own, r=2, lora_alpha=1)
    fm.merge("linear", None, {"m": f"{pool['n0']}+{adapter}"}, tmp_path / "expanded")
    results = [
        run(Net(0), pool | {"both": member}, **options) for member in (f"{pool['n0']}+{adapter}", tmp_path / "expanded")
    ]
    one, two = (result.record.coefficients for result in results)
    assert one == two
    for k, result in enumerate(results):
        result.write(tmp_path / f"out{k}")
    assert all(t.equal(read(tmp_path / "out1")[n]) for n, t in read(tmp_path / "out0").items())


def test_pools_that_do_not_fit(tmp_path: Path) -> None:
    """Every member that does not fit is named with its tensor, and left out on request."""
    pool: dict[str, Any] = dict(nets(tmp_path, 2))
    good = _stored(Net(7))
    pool["missing"] = {n: t for n, t in good.items() if n != "norm.weight"}
    pool["more"] = write(tmp_path / "more", good | {"head.weight": torch.zeros(3)})
    pool["wide"] = good | {"up.weight": torch.zeros(9000, 9)}
    pool["whole"] = good | {"norm.bias": torch.zeros(8, dtype=torch.long)}
    pool["nowhere"] = tmp_path / "nowhere"
    pool["adapter"] = write_adapter(tmp_path / "adapter", lora({"up": (9000, 8)}, 2, 1))
    with pytest.raises(InputError) as caught:
        run(Net(0), pool)
    for text in (
        "missing: tensor 'norm.weight' is missing",
        "more: tensor 'head.weight' is not in the model",
        "wide: tensor 'up.weight' is F32 [9000, 9], the model has BF16 [9000, 8]",
        "whole: tensor 'norm.bias' is I64 [8]",
        "nowhere does not exist",
        "is an adapter; write MODEL+ADAPTER",
        "skip_misfits=True",
    ):
        assert text in str(caught.value)
    result = run(Net(0), pool, skip_misfits=True, steps=1)
    assert result.record.candidates == ["initial", "n0", "n1"]
    assert len(result.record.notes) == 6
    assert run(Net(0), {"more": pool["more"]}, task_specific=["head.*"], steps=1).loss is not None
    with pytest.raises(InputError, match="nothing is left"):
        run(Net(0), {"wide": pool["wide"]}, skip_misfits=True)
    with pytest.raises(InputError, match="is empty"):
        run(Net(0), [])
    with pytest.raises(InputError, match="several members are called n0"):
        run(Net(0), [pool["n0"], pool["n0"]])
    with pytest.raises(InputError, match=r"initial: tensor 'norm\.weight' is missing"):
        run(Net(0), {"n0": pool["n0"]}, init=pool["missing"])
    net = Net(0)
    net.up.weight.data = net.up.weight.data.T.contiguous().T
    with pytest.raises(InputError, match=r"model: 'up\.weight' is not contiguous in memory; make it"):
        run(net, {"n0": pool["n0"]})


def test_a_candidate_that_is_not_finite_is_named(tmp_path: Path) -> None:
    state = _stored(Net(3))
    state["up.weight"][5, 5] = torch.inf
    with pytest.raises(MergeError, match=r"bad: tensor 'up.weight' holds NaN or infinity"):
        run(Net(0), {"good": Net(2).state_dict(), "bad": state})


@pytest.mark.parametrize("run", [fm.frank_wolfe, fm.ada_merging], ids=["frank_wolfe", "ada_merging"])
def test_where_going_back_fails_the_model_is_said_to_be_of_no_step(run: Any, tmp_path: Path) -> None:
    problem = Problem(0)
    for i, state in enumerate(problem.pool):
        save_file(state, tmp_path / f"m{i}.safetensors")
    calls: list[int] = []

    def loss(model: nn.Module, _: object) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            os.utime(tmp_path / "m1.safetensors", (1, 1))
        return problem.loss(model)

    with pytest.raises(MergeError, match=r"of no step: one failed.*changed.*going back.*again") as said:
        run(problem.model(), sorted(tmp_path.iterdir()), batches=[None], loss_fn=loss, steps=5)
    assert "m1.safetensors" in str(said.value.__cause__)


def test_task_specific_tensors_and_frozen_parameters(tmp_path: Path) -> None:
    """The former stay the model's; the latter are merged like all, and stay frozen."""
    model = Net(0, tied=False)
    model.up.weight.requires_grad_(False)
    pool = {"n": {n: t for n, t in Net(1, tied=False).state_dict().items() if n != "out.weight"}}
    result = run(model, pool, task_specific=["out.*"], step=1.0, steps=1, tolerance=-torch.inf, initial_vertex=False)
    assert torch.equal(model.out.weight, Net(0, tied=False).out.weight)
    assert torch.equal(model.up.weight, pool["n"]["up.weight"])
    assert not model.up.weight.requires_grad
    result.write(tmp_path / "out")
    assert torch.equal(read(tmp_path / "out")["out.weight"], model.out.weight)


MEMORY = """
import sys, threading, time
from pathlib import Path
import torch
import fastmerge as fm

def anonymous():
    line = next(l for l in open("/proc/self/status") if l.startswith("RssAnon"))
    return int(line.split()[1]) << 10

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(1024, 1024)) for _ in range(8)])

def loss(model, target):
    return torch.stack([(p.view(-1)[::64] - target).square().mean() for p in model.layers]).sum()

def peak(count):
    net = Net()
    pool = {f"m{i}": f"member{i % 2}" for i in range(count)}
    for folder in set(pool.values()):
        assert Path(folder).is_dir()
    before, most, done = anonymous(), 0, False
    def watch():
        nonlocal most
        while not done:
            most = max(most, anonymous())
            time.sleep(0.0005)
    thread = threading.Thread(target=watch)
    thread.start()
    fm.frank_wolfe(net, pool, loss, [0.3], steps=3, variant="soft", top_k=3, inner_steps=3, lmo="layer")
    done = True
    thread.join()
    return (most - before) / (8 << 22)

peak(2)  # what libraries load and keep
print(*(peak(count) for count in (4, 32)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_pool(tmp_path: Path) -> None:
    """Beside the model there is its gradient; of candidates no more than blocks. In models of 32 MiB."""
    for i in range(2):
        folder = tmp_path / f"member{i}"
        folder.mkdir()
        save_file({f"layers.{n}": torch.full((1024, 1024), float(i)) for n in range(8)}, folder / "model.safetensors")
    done = subprocess.run([sys.executable, "-c", MEMORY], cwd=tmp_path, capture_output=True, text=True, check=True)
    four, many = map(float, done.stdout.split())
    assert 0.9 < four < 1.7
    assert many < four + 0.5  # a single member in memory would be 1; a gradient of one parameter is 0.125


def test_weights_are_left_as_they_are_by_what_cannot_run() -> None:
    problem = Problem(1)
    model = problem.model()
    with pytest.raises(InputError):
        fm.frank_wolfe(model, problem.pool, problem.loss, [])
    assert all(torch.equal(t, problem.initial[n]) for n, t in model.state_dict().items())
    assert isinstance(model, Weights)


def test_what_cannot_be_looked_at_is_said(as_nobody: Path) -> None:
    """Records and routers in a folder that is closed."""
    closed = as_nobody / "closed"
    closed.mkdir(mode=0o000)
    with pytest.raises(InputError, match=r"closed: cannot be looked at: Permission denied"):
        fm.fw.rebuild(closed / "run.json")
    with pytest.raises(InputError, match=r"checkpoint: .*closed cannot be written to"):
        run(Net(0), {"n": Net(1).state_dict()}, checkpoint=closed / "run.json")
    with pytest.raises(InputError, match=r"closed: cannot be looked at: Permission denied"):
        fm.runtime.Router.load(closed)
