"""Checkpoints merged on disk: what is written, what is not, and what does not change it."""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import Patched, content, family, near, read, state, write
from safetensors.torch import load_file
from tensors import assert_same_bits
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastmerge as fm
from fastmerge.engine import slots, writer
from fastmerge.errors import InputError, MergeError
from fastmerge.recipe import outputs
from fastmerge.recipe import plan as planning

BIG = {"a.weight": (700, 301), "b.weight": (65_536,), "c.weight": (3, 5), "d.weight": (131_073,)}


@pytest.fixture
def big(tmp_path: Path) -> tuple[Path, dict[str, Path]]:
    base = state(0, torch.bfloat16, BIG)
    models = {f"m{k}": write(tmp_path / f"m{k}", near(base, k + 1)) for k in range(3)}
    return write(tmp_path / "base", base), models


@pytest.mark.parametrize("method", ["linear", "emr"])
def test_the_same_bytes_every_time(method: str, big: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    """Twice the same merge, and one in the smallest chunks, write the same files to the byte."""
    base, models = big
    for out, memory in (("one", "1GiB"), ("two", "1GiB"), ("small", "8MiB")):
        (tmp_path / out).mkdir()
        fm.merge(method, base, models, tmp_path / out / "merged", memory=memory)
    assert planning.plan(method, base, models, memory="8MiB").chunk < planning.plan(method, base, models).chunk
    assert content(tmp_path / "one") == content(tmp_path / "two") == content(tmp_path / "small")


def test_emr_artefact_and_tasks(big: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    """Task folders equal what is computed in memory; the artefact is a model and a bit per parameter and task."""
    base, models = big
    begin = time.perf_counter()
    report = fm.merge("emr", base, models, tmp_path / "emr")
    assert 0 < report.seconds < time.perf_counter() - begin
    in_memory = fm.merge_state_dicts("emr", read(base), {n: read(f) for n, f in models.items()})
    assert report.results["rescalers"] == list(in_memory.stats["rescalers"].values())
    unified, masks = (load_file(tmp_path / "emr" / f"{n}.safetensors") for n in ("unified", "masks"))
    for name, tensor in read(base).items():
        assert unified[name].dtype == torch.bfloat16
        assert masks[name].shape == (3, -(-tensor.numel() // 8))
    for row, task in enumerate(models):
        fm.task(tmp_path / "emr", task, tmp_path / task / "again")
        for name, tensor in read(tmp_path / task / "again").items():
            expected = fm.ops.modulate(
                read(base)[name], unified[name], masks[name][row], report.results["rescalers"][row], backend="reference"
            )
            assert_same_bits(tensor, expected, f"{task} {name}")


def test_heads_are_kept_per_task(tmp_path: Path) -> None:
    """A head of each task's own shape goes into the artefact and comes back with the task; base's stays in a merge."""
    base = state(0)
    folders, heads = {}, {}
    for k in range(2):
        heads[f"m{k}"] = {"head.weight": torch.full((k + 2, 8), float(k)), "head.bias": torch.full((k + 2,), 0.5)}
        folders[f"m{k}"] = write(tmp_path / f"m{k}", near(base, k + 1) | heads[f"m{k}"], {"num_labels": k + 2})
    own = {"head.weight": torch.ones(1, 8), "head.bias": torch.ones(1)}
    write(tmp_path / "base", base | own, {"num_labels": 1})
    fm.merge("emr", tmp_path / "base", folders, tmp_path / "emr", task_specific=["head.*"])
    for name, head in heads.items():
        fm.task(tmp_path / "emr", name, tmp_path / f"{name}-again")
        again = read(tmp_path / f"{name}-again")
        assert set(again) == set(base) | set(head)
        for tensor in head:
            assert_same_bits(again[tensor], head[tensor], tensor)
        assert json.loads((tmp_path / f"{name}-again" / "config.json").read_text())["num_labels"] == len(
            head["head.bias"]
        )
    fm.merge("linear", tmp_path / "base", folders, tmp_path / "avg", task_specific=["head.*"])
    assert_same_bits(read(tmp_path / "avg")["head.weight"], own["head.weight"], "base's head")


@pytest.mark.parametrize("method", ["linear", "emr"])
def test_integers_are_copied(method: str, tmp_path: Path) -> None:
    base = state(0)
    ids = {"position_ids": torch.arange(7), "flag": torch.tensor([True, False])}
    ids |= {str(dtype): torch.arange(5).to(dtype) for dtype in (torch.uint16, torch.uint32, torch.uint64)}
    write(tmp_path / "base", base | ids)
    models = {f"m{k}": write(tmp_path / f"m{k}", near(base, k + 1) | ids) for k in range(2)}
    fm.merge(method, tmp_path / "base", models, tmp_path / "out")
    if method == "emr":
        fm.task(tmp_path / "out", "m0", tmp_path / "task")
    result = read(tmp_path / ("task" if method == "emr" else "out"))
    for name, tensor in ids.items():
        assert torch.equal(result[name], tensor)


def test_different_integers_are_an_error(tmp_path: Path) -> None:
    base = state(0)
    write(tmp_path / "base", base | {"ids": torch.arange(7)})
    models = {"m0": write(tmp_path / "m0", near(base, 1) | {"ids": torch.arange(1, 8)})}
    with pytest.raises(MergeError, match=r"'ids'.*differs between base and m0"):
        fm.merge("emr", tmp_path / "base", models, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("count", [2, 15])
@pytest.mark.parametrize("on_disk", [True, False])
def test_all_different_integers_are_named(count: int, on_disk: bool, tmp_path: Path) -> None:
    """The first ones, and how many more; and what can be done."""
    same = {"same": torch.arange(3).to(torch.uint32)}
    base = state(0) | {f"ids.{i}": torch.arange(7) for i in range(count)} | same
    models = {f"m{k}": base | {f"ids.{i}": torch.arange(7) + k + i % 2 for i in range(count)} for k in range(3)}
    folders = {name: write(tmp_path / name, own) for name, own in {"base": base, **models}.items()}
    origin = folders.pop("base")
    with pytest.raises(MergeError) as caught:
        fm.merge("linear", origin, folders, tmp_path / "out") if on_disk else fm.merge_state_dicts(
            "linear", base, models
        )
    lines = str(caught.value).splitlines()
    assert len(lines) == min(count, 11)
    assert "'ids.0' (I64) differs between base and m1, m2;" in lines[0]
    assert "'ids.1' (I64) differs between base and m0, m1, m2;" in lines[1]
    assert all("--task-specific PATTERN" in line for line in lines[:10])
    assert (lines[-1] == "… and 5 more like the last") == (count > 10)


@pytest.mark.parametrize(
    ("method", "codes"), [("gptq", torch.int32), ("bitsandbytes", torch.uint8), ("fp8", torch.float8_e4m3fn)]
)
def test_quantised_models_are_refused_as_such(method: str, codes: torch.dtype, tmp_path: Path) -> None:
    """In a line each, not by their tensors; not for what a configuration has kept beside weights that are none."""
    base, config = state(0), {"quantization_config": {"quant_method": method}}
    codes_of = {"layers.0.qweight": torch.ones(3, 4).to(codes), "layers.0.scales": torch.ones(4)}
    folders = {
        name: write(tmp_path / name, tensors, config)
        for name, tensors in (("a", codes_of), ("b", codes_of), ("whole", base))
    }
    said = [rf"{name}: .* is quantised \({method}\), and codes cannot be merged; give the model" for name in "ab"]
    with pytest.raises(InputError) as caught:
        fm.plan("linear", write(tmp_path / "base", base), {name: folders[name] for name in "ab"})
    assert len(caught.value.problems) == 2
    assert all(map(re.match, said, caught.value.problems))
    fm.plan("linear", tmp_path / "base", {"whole": folders["whole"]})


def test_a_missing_configuration_is_told_of(tmp_path: Path) -> None:
    base, models = family(tmp_path, 2)
    said = "has no config.json, so that the result has none"
    assert not any(said in note for note in fm.plan("linear", base, models).notes)
    (base / "config.json").unlink()
    assert f"base {said}; copy that of m0, if it fits" in fm.plan("linear", base, models).notes
    for model in models.values():
        (model / "config.json").unlink()
    assert not any(said in note for note in fm.plan("linear", base, models).notes)


def test_task_specific_tensors_that_no_result_has(tmp_path: Path) -> None:
    """Are told of, but not where base has its own, or the result each task's."""
    base = state(0)
    models = {
        f"m{k}": write(tmp_path / f"m{k}", near(base, k + 1) | {"head.weight": torch.ones(k + 2, 8)}) for k in range(2)
    }
    write(tmp_path / "base", base)
    write(tmp_path / "with", base | {"head.weight": torch.ones(1, 8)})
    said = "2 task-specific tensors are left out (m0's head.weight, m1's head.weight)"
    for method, origin, told in (
        ("linear", None, True),
        ("linear", "base", True),
        ("linear", "with", False),
        ("emr", "base", False),
    ):
        place = None if origin is None else tmp_path / origin
        assert (said in fm.plan(method, place, models, task_specific=["head.*"]).notes) == told, (method, origin)


@pytest.mark.parametrize("method", ["linear", "free", "twin"])
@pytest.mark.parametrize("bad", [float("nan"), 3e38])
def test_what_a_method_refuses_is_not_proposed(method: str, bad: float, tmp_path: Path) -> None:
    """Not every method lets through what is not finite."""
    base = state(0, torch.float32) | {"norm.weight": torch.full((8,), -bad)}
    write(tmp_path / "base", base)
    models = {"m": write(tmp_path / "m", base | {"norm.weight": torch.full((8,), bad)})}
    with pytest.raises(MergeError, match=r"'norm\.weight'") as caught:
        fm.merge(method, tmp_path / "base", models, tmp_path / "out", {"weights": 2} if method == "linear" else {})
    assert ("nonfinite=allow" in str(caught.value)) == (method == "linear")


@pytest.mark.parametrize("method", ["linear", "emr", "free"])
def test_names_that_are_no_text(method: str, tmp_path: Path) -> None:
    """Paths in another encoding and half of a surrogate pair: all that is written is UTF-8, and all JSON is read."""
    root = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        root.mkdir()
    except OSError:
        pytest.skip("this file system takes no such names")
    base, models = family(root, 2)
    for folder in (base, *models.values()):
        (folder / "config.json").write_text('{"model_type": "test", "name": "\\ud800"}')
    out = root / os.fsdecode(b"out\xe9")
    fm.merge(method, base, models, out, dtype="float32")
    if method == "linear":
        fm.extract_lora(base, models["m0"], root / "lora", tensors=["layers.0.weight"])
    else:
        fm.task(out, "m0", root / "task", base=base)
    for file in (path for path in root.rglob("*") if path.suffix in (".json", ".md")):
        text = file.read_text(encoding="utf-8")
        assert file.suffix == ".md" or json.loads(text)
    assert not fm.verify(out, base=base, models=models).problems
    assert json.loads((out / "config.json").read_text())["name"] == "\ud800"


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "magmax", "emr"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_weight_is_named(method: str, bad: float, tmp_path: Path) -> None:
    """The error names tensor, model and file, and leaves no output; nonfinite=allow lets it through."""
    base, models = family(tmp_path)
    broken = read(models["m1"])
    broken["layers.0.weight"][3, 2] = bad
    write(tmp_path / "broken", broken)
    models["m1"] = tmp_path / "broken"
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(MergeError, match=r"'layers\.0\.weight'.*m1 \(1 of 264 values, model\.safetensors\)") as caught:
        fm.merge(method, base, models, tmp_path / "out")
    assert "m0" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    fm.merge(method, base, models, tmp_path / "out", {"nonfinite": "allow"})


def test_a_result_out_of_range_is_told_apart(tmp_path: Path) -> None:
    base, models = family(tmp_path, 2, torch.float16)
    with pytest.raises(MergeError, match="leaves the range"):
        fm.merge("task_arithmetic", base, models, tmp_path / "out", {"scale": 1e8})


def test_short_writes_and_no_direct_io(
    big: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system without O_DIRECT that writes less than asked gives the same bytes."""
    base, models = big
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    fm.merge("emr", base, models, tmp_path / "x" / "out")
    opened = os.open

    def plain(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(path, flags, mode)

    short = Patched(os, open=plain, pwrite=lambda fd, data, offset: os.pwrite(fd, data[:4000], offset))
    for module in (writer, slots):
        monkeypatch.setattr(module, "os", short)
    fm.merge("emr", base, models, tmp_path / "y" / "out")
    assert content(tmp_path / "x" / "out") == content(tmp_path / "y" / "out")


def test_output_folders(tmp_path: Path) -> None:
    """An existing folder is not touched without `overwrite`, is replaced whole with it, and inputs never are."""
    base, models = family(tmp_path)
    out = tmp_path / "deep" / "out"
    fm.merge("linear", base, models, out)
    (out / "mine.txt").write_text("kept?")
    with pytest.raises(InputError, match="exists already"):
        fm.merge("linear", base, models, out)
    assert (out / "mine.txt").exists()
    fm.merge("linear", base, models, out, overwrite=True)
    assert not (out / "mine.txt").exists()
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    for bad in (base, tmp_path):
        with pytest.raises(InputError, match="would overwrite the input"):
            fm.merge("linear", base, models, bad, overwrite=True)


def test_sharded_output(big: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files beyond the limit are sharded with an index, and are read again as one checkpoint."""
    base, models = big
    layout = outputs.plan_layout
    monkeypatch.setattr(outputs, "plan_layout", lambda *a, **k: layout(*a, **{**k, "limit": 300_000}))
    fm.merge("linear", base, models, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in read(tmp_path / "out").values())
    expected = fm.merge_state_dicts("linear", read(base), {n: read(f) for n, f in models.items()}).state_dict
    fm.merge("linear", tmp_path / "out", {"a": tmp_path / "out"}, tmp_path / "again")
    for name, tensor in read(tmp_path / "again").items():
        assert_same_bits(tensor, expected[name], name)


def test_dtype_of_the_result(tmp_path: Path) -> None:
    base, models = family(tmp_path)
    fm.merge("task_arithmetic", base, models, tmp_path / "out", dtype="float32")
    assert {t.dtype for t in read(tmp_path / "out").values()} == {torch.float32}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float32"
    recipe = {"method": "task_arithmetic", "base": str(base), "models": {n: str(path) for n, path in models.items()}}
    torchs: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}
    fm.merge("task_arithmetic", base, models, tmp_path / "merge" / "out", **torchs)
    fm.run(recipe, tmp_path / "run" / "out", **torchs)
    assert content(tmp_path / "out") == content(tmp_path / "merge" / "out") == content(tmp_path / "run" / "out")
    with pytest.raises(InputError, match=r"device 'meta': expected .*\nunknown dtype 'int8'; there are bfloat16"):
        fm.plan("linear", base, models, dtype=torch.int8, device=torch.device("meta"))


@pytest.mark.parametrize("models", [["a"], "a", Path("a"), [("a", "b", "c")]], ids=str)
def test_models_without_names(models: Any) -> None:
    with pytest.raises(InputError, match=r"^models(: expected {str: .*} or|\[0\]: expected) .*\(str, str or P"):
        fm.merge("linear", None, models, "out")
    with pytest.raises(InputError, match=r"^models(: expected {str: .*} or|\[0\]: expected) .*\(str, str or P"):
        fm.spectrum("base", models)
    with pytest.raises(InputError, match=r"^models: expected {str: {str: Tensor}}, not "):
        fm.merge_state_dicts("linear", None, models)
    with pytest.raises(InputError, match=r"^tensors(\[0\])?: expected \[?\(str or \[str, …\], {str: …}\)"):
        fm.plan("linear", None, {"a": "a"}, tensors=models)


def test_models_one_after_the_other(tmp_path: Path) -> None:
    base, models = family(tmp_path)
    expected = fm.plan("emr", base, models).summary()
    for pairs in (models.items(), zip(models, models.values(), strict=True), list(models.items())):
        assert fm.plan("emr", base, pairs).summary() == expected  # type: ignore[arg-type]


def test_no_models_is_one_problem(tmp_path: Path) -> None:
    base, _ = family(tmp_path)
    with pytest.raises(InputError, match=r"^1 to 64 models can be merged, these are 0; [^\n]*$"):
        fm.plan("slerp", base, {})


def test_what_is_shown_of_results_is_short(tmp_path: Path) -> None:
    """In a notebook or at a prompt, where a large model's tensors would fill the screen."""
    base, models = family(tmp_path)
    merged = fm.merge_state_dicts("emr", state(0), {"a": state(1), "b": state(2)})
    assert re.fullmatch(r"Merged\(\d tensors, stats=\{'rescalers': \{'a': .*, 'b': .*\}\}\)", repr(merged))
    assert re.match(r"MergePlan\(\{'method': 'emr', .*'passes': 1, ", repr(fm.plan("emr", base, models)))


def test_linear_without_a_base(tmp_path: Path) -> None:
    _, models = family(tmp_path)
    fm.merge("linear", None, models, tmp_path / "out")
    assert set(read(tmp_path / "out")) == set(state(0))


def test_task_needs_the_base_it_was_made_with(tmp_path: Path) -> None:
    """A base that moved is given anew; another one is refused, and so is a task that is not there."""
    base, models = family(tmp_path)
    fm.merge("emr", base, models, tmp_path / "emr")
    base.rename(tmp_path / "moved")
    with pytest.raises(InputError, match="base"):
        fm.task(tmp_path / "emr", "m0", tmp_path / "task")
    fm.task(tmp_path / "emr", "m0", tmp_path / "task", base=tmp_path / "moved")
    other = write(tmp_path / "other", {name: t.float() for name, t in state(0).items()})
    with pytest.raises(InputError, match="not the base model"):
        fm.task(tmp_path / "emr", "m0", tmp_path / "task2", base=other)
    with pytest.raises(InputError, match="did you mean 'm2'"):
        fm.task(tmp_path / "emr", "m22", tmp_path / "task2", base=tmp_path / "moved")


def test_side_files_and_card(tmp_path: Path) -> None:
    """Configuration and tokenizer come from base; the card names method and inputs; weights of other kinds stay."""
    base, models = family(tmp_path)
    (base / "tokenizer.json").write_text("{}")
    (base / "pytorch_model.bin").write_bytes(b"old")
    fm.merge("linear", base, models, tmp_path / "out")
    names = {f.name for f in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.json", "README.md", "fastmerge.json"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "linear" in card
    assert "header_sha256" in card


@pytest.mark.parametrize("value", [None, 3.5, [1.0], "x"], ids=str)
@pytest.mark.parametrize("where", ["base", "m1"])
def test_a_state_dict_of_something_else(value: object, where: str) -> None:
    states: dict[str, dict[str, Any]] = {name: state(k) for k, name in enumerate(("base", "m0", "m1"))}
    states[where]["norm.weight"] = value
    base = states.pop("base")
    with pytest.raises(
        InputError, match=rf"{where}: 'norm\.weight' is of type {type(value).__name__}; expected a tensor"
    ):
        fm.merge_state_dicts("linear", base, states)
    whole: dict[str, Any] = {"base": base, **states, where: torch.nn.Linear(2, 2)}
    named = {"base": r"base: expected {str: Tensor} or None", "m1": r"models\['m1'\]: expected {str: Tensor}"}[where]
    with pytest.raises(InputError, match=rf"^{named}, not a Linear; pass its state_dict\(\)$"):
        fm.merge_state_dicts("linear", whole.pop("base"), whole)


NOT_DENSE: dict[str, tuple[Callable[[], Tensor], str]] = {
    "meta": (lambda: torch.empty(8, device="meta"), r"is on the meta device, without values; load them"),
    "sparse": (lambda: torch.ones(8).to_sparse(), r"is stored as sparse_coo; call its to_dense\(\)"),
    "fake": (lambda: FakeTensorMode().from_tensor(torch.ones(8)), "is a FakeTensor, which keeps its elements in"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(8)], layout=torch.jagged), "is a NestedTensor"),
    "lazy": (lambda: torch.nn.UninitializedParameter(), "has no shape yet; run its lazy module once"),
}


@pytest.mark.parametrize("kind", NOT_DENSE)
def test_tensors_without_elements_in_order(kind: str) -> None:
    """They are all named before any work."""
    make, expected = NOT_DENSE[kind]
    states: dict[str, dict[str, Any]] = {name: state(k) for k, name in enumerate(("m0", "m1"))}
    for own in states.values():
        own["norm.weight"] = make()
    with pytest.raises(InputError) as caught:
        fm.merge_state_dicts("linear", None, states)
    for problem, name in zip(caught.value.problems, states, strict=True):
        assert re.match(rf"{name}: tensor 'norm\.weight' {expected}", problem)
    for op in (fm.ops.combine, fm.ops.inner_products, fm.ops.moments):
        with pytest.raises(InputError, match=r"models\[1\] (is|has no shape)"):
            op(torch.ones(8), [torch.ones(8), make()])


def test_a_task_keeps_what_is_its_own_as_it_is() -> None:
    """Such as a sparse tensor, which is not merged."""
    states = {name: state(k) | {"norm.weight": torch.eye(8).to_sparse()} for k, name in enumerate(("m0", "m1"))}
    assert fm.merge_state_dicts("linear", None, states, task_specific=["norm.*"]).own["m1"]["norm.weight"].is_sparse


def test_records_of_other_merges_are_not_copied(tmp_path: Path) -> None:
    """A result whose base was made by any command has no record but its own."""
    base, models = family(tmp_path, 1)
    records = ["emr", "experts", "extraction", "frank_wolfe", "ada_merging", "fisher", "regmean", "router", "fastmerge"]
    for name in records:
        (base / f"{name}.json").write_text("{}")
    (base / "tokenizer.json").write_text("{}")
    fm.merge("linear", base, models, tmp_path / "out")
    left = {path.name for path in (tmp_path / "out").glob("*.json")}
    assert left == {"config.json", "tokenizer.json", "fastmerge.json"}


def test_tensors_of_bases_own_have_the_dtype_too(tmp_path: Path) -> None:
    """All of a result's weights do, as its configuration says; integers stay what they are, infinities are told."""
    base = state(0, torch.float32) | {"head.weight": torch.randn(3, 8), "head.ids": torch.arange(5)}
    write(tmp_path / "base", base)
    models = {"m": write(tmp_path / "m", near(state(0, torch.float32), 1))}
    fm.merge("linear", tmp_path / "base", models, tmp_path / "out", dtype="bfloat16", task_specific=["head.*"])
    result = read(tmp_path / "out")
    assert {t.dtype for t in result.values()} == {torch.bfloat16, torch.int64}
    assert_same_bits(result["head.weight"], base["head.weight"].bfloat16(), "head")
    assert not fm.verify(tmp_path / "out", samples=None).problems
    write(tmp_path / "large", base | {"head.weight": torch.full((3, 8), 1e9)})
    with pytest.raises(MergeError, match=r"'head\.weight': the result leaves the range"):
        fm.merge("linear", tmp_path / "large", models, tmp_path / "x", dtype="float16", task_specific=["head.*"])
