"""Configurations of mergekit's: what they mean, what is wrong with them, and what is found before a weight is read."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama
import mergekit_golden
import pytest
import torch
import yaml
from adapters import added, lora, write_adapter
from folders import content, read, state, weights, write
from hypothesis import given
from hypothesis import strategies as st
from mergekit_configs import ALIKE, Config, based, located, model, source
from tokenizers_on_disk import write_tokenizer
from torch import Tensor

import fastmerge as fm
from fastmerge.engine import merge as engine
from fastmerge.errors import InputError
from fastmerge.formats.expanded import is_computed
from fastmerge.recipe.mergekit.settings import NOTHING, evaluate, number
from fastmerge.recipe.reading import read_recipe

TIES = based("ties", model("a", weight=1.0, density=0.5), model("b", weight=0.3), normalize=True)
SLICED: Config = {
    "merge_method": "passthrough",
    "slices": [{"sources": [source("a", 0, 2)]}, {"sources": [source("b", 1, 3)]}],
}
BASED: Config = {
    "merge_method": "task_arithmetic",
    "base_model": "base",
    "slices": [{"sources": [source("base", 0, 2), source("a", 1, 3)]}],
    "parameters": {"weight": 0.5},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return llama.family(tmp_path_factory.mktemp("models"), {"a": 1, "b": 2}, layers=3)


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights cannot be read."""

    def opened(*_: object) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(engine, "Inputs", opened)


def problems(config: Config, folders: dict[str, Path] | None = None) -> list[str]:
    """What is wrong with a configuration, of models where there are some."""
    try:
        read_recipe(located(config, folders) if folders else config).plan()
    except InputError as error:
        return error.problems
    return []


def changed(config: Config, *path: str | int, value: Any) -> Config:
    """The configuration with another value in one place."""
    found = copy.deepcopy(config)
    place: Any = found
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return found


# Values


@pytest.mark.parametrize(
    ("setting", "tensor", "t", "expected"),
    [
        (0.3, "x", 0.7, 0.3),
        ("3e-1", "x", 0.7, 0.3),
        ([0, 1], "x", 0.25, 0.25),
        ([0, 1, 0], "x", 0.75, 0.5),
        ([0.5], "x", 0.5, 0.5),
        ([0, 4], "x", 1, 4),
        ({"value": 2}, "x", 0, 2),
        ({"value": 2, "filter": "mlp"}, "layers.0.mlp.weight", 0, 2),
        ({"value": 2, "filter": "mlp"}, "layers.0.attn.weight", 0, NOTHING),
        ([{"value": [0, 2], "filter": "mlp"}, {"value": 5, "filter": "*"}], "layers.0.mlp.weight", 0.5, 1),
        ([{"value": [0, 2], "filter": "mlp"}, {"value": 5, "filter": "*"}], "norm.weight", 0.5, 5),
        ([{"value": 1, "filter": "m"}, {"value": 2, "filter": "mlp"}], "mlp", 0, 1),
    ],
)
def test_settings(setting: Any, tensor: str, t: float, expected: Any) -> None:
    assert evaluate(setting, tensor, t, number) == expected


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=6), st.floats(0, 1))
def test_a_gradient_stays_between_its_points(points: list[float], t: float) -> None:
    """And is at its first point at depth 0, at its last at depth 1."""
    assert min(points) - 1e-9 <= evaluate(points, "x", t, number) <= max(points) + 1e-9
    assert [evaluate(points, "x", end, number) for end in (0, 1)] == [points[0], points[-1]]


def test_parameters_by_tensor(folders: dict[str, Path]) -> None:
    """The nearest place counts: the model's, the merge's, mergekit's default; layers are 0, 1/2 and 1 deep."""
    config = based("ties", model("a", density=[0, 1], weight=2), model("b"), **{"weight": 0.5, "lambda": 3})
    config["models"][1]["parameters"] = {"density": {"filter": "mlp", "value": 0.1}}
    plan = read_recipe(located(config, folders)).plan()

    def of(name: str) -> tuple[Any, ...]:
        method: Any = plan.outputs[0].parameters.of(name)
        return method.weights, method.density, method.scale, method.merge

    rest = {"a": 2.0, "b": 0.5}, 3.0, "weighted_mean"
    assert of("model.layers.1.mlp.up_proj.weight") == (rest[0], {"a": 0.5, "b": 0.1}, *rest[1:])
    assert of("model.layers.2.input_layernorm.weight") == (rest[0], {"a": 1.0, "b": 1.0}, *rest[1:])
    assert of("lm_head.weight") == of("model.embed_tokens.weight") == (rest[0], {"a": 0.0, "b": 1.0}, *rest[1:])


@pytest.mark.parametrize(
    ("method", "own", "parameters"),
    [
        ("emr", {}, {"rescale": "mean_of_means"}),
        ("fr", {"coefficient": 0.5}, {"cutoff": 0.4}),
        ("fr", {}, {"coefficients": "sum"}),
        ("free", {}, {"expert_density": 0.02, "rescale": 3.0}),
        ("magmax", {"weight": 0.7}, {"scale": 0.5}),
        ("dare_ties", {"weight": 1.0, "density": 0.5}, {"seed": 5}),
    ],
)
def test_fastmerges_own_methods_and_parameters(
    method: str, own: Config, parameters: Config, folders: dict[str, Path], tmp_path: Path
) -> None:
    """In mergekit's syntax they give the bytes of a recipe."""
    fm.run(located(based(method, model("a", **own), model("b", **own), **parameters), folders), tmp_path / "one")
    said = {"rescale": "l1", "merge": "sum"} if method == "dare_ties" else {}
    models = {name: {"path": str(folders[name]), **own} for name in ("a", "b")}
    recipe = {"method": method, "base": str(folders["base"]), "models": models, "parameters": parameters | said}
    fm.run(recipe, tmp_path / "other")
    assert weights(tmp_path / "one") == weights(tmp_path / "other")


@pytest.fixture(scope="module")
def golden_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return mergekit_golden.models(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", ALIKE)
def test_golden(name: str, golden_models: dict[str, Path], tmp_path: Path) -> None:
    """What mergekit made of the configuration, but for a few roundings."""
    fm.run(located(ALIKE[name], golden_models), tmp_path / "out")
    found = mergekit_golden.digest(read(tmp_path / "out"))
    expected = json.loads(mergekit_golden.FILE.read_text())[name]
    assert found.keys() == expected.keys()
    narrow = "bfloat16" in (ALIKE[name].get("dtype"), ALIKE[name].get("out_dtype"))
    for tensor, values in found.items():
        assert values == pytest.approx(expected[tensor], rel=2**-7 if narrow else 1e-5, abs=1e-4), tensor


# Slices


def test_layers_are_renamed_not_copied(folders: dict[str, Path], tmp_path: Path) -> None:
    """Four layers of two models of three, to the bit, and a configuration that knows them."""
    config = located(SLICED, folders)
    report = fm.run(config, tmp_path / "out")
    a, b, merged = read(folders["a"]), read(folders["b"]), read(tmp_path / "out")
    assert len(report.models) == 1
    for name, tensor in merged.items():
        layer = int(name.split(".")[2]) if ".layers." in name else -1
        own, number = (b, layer - 1) if layer >= 2 or name in ("lm_head.weight", "model.norm.weight") else (a, layer)
        assert torch.equal(tensor, own[name.replace(f".{layer}.", f".{number}.")]), name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 4
    assert yaml.safe_load((tmp_path / "out" / "mergekit_config.yml").read_text()) == config
    fm.verify(tmp_path / "out", samples=None)


def test_lists_by_layer_follow_the_layers(folders: dict[str, Path], tmp_path: Path) -> None:
    """config.json's kinds of layers are those of the layers that were taken."""
    kinds = ["full", "sliding", "linear"]
    a = write(tmp_path / "a", read(folders["a"]), {**llama.config(3), "layer_types": kinds})
    slices = [{"sources": [source("a", 1, 3)]}, {"sources": [source("a", 0, 2)]}]
    fm.run(located({"merge_method": "passthrough", "slices": slices}, {"a": a}), tmp_path / "out")
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (made["layer_types"], made["num_hidden_layers"]) == (["sliding", "linear", "full", "sliding"], 4)


def test_resumed_slices_are_not_those_of_other_layers(folders: dict[str, Path], tmp_path: Path) -> None:
    """Statistics that are kept of a merge of some layers are not used for one of others."""
    config: Config = {"merge_method": "fr", "base_model": "base", "parameters": {"cutoff": 0.4}}
    for which, first in (("one", 0), ("other", 1)):
        sources = [source(name, first, first + 2) for name in ("base", "a", "b")]
        fm.run(located(config | {"slices": [{"sources": sources}]}, folders), tmp_path / which)
        fm.run(located(config | {"slices": [{"sources": sources}]}, folders), tmp_path / f"{which} alone" / "out")
        assert (
            content(tmp_path / which)["model.safetensors"]
            == (content(tmp_path / f"{which} alone" / "out")["model.safetensors"])
        )


# Adapters


def test_model_and_adapter(folders: dict[str, Path], tmp_path: Path) -> None:
    """MODEL+ADAPTER is the model that the adapter makes, whole or in slices, with the model's configuration."""
    module = "model.layers.1.mlp.up_proj"
    parts = lora({module: (llama.MLP, llama.HIDDEN)}, 4, 1)
    adapter = write_adapter(tmp_path / "lora", parts)
    both = folders | {"a+lora": Path(f"{folders['a']}+{adapter}")}
    a, name = read(folders["a"]), f"{module}.weight"
    expected = added(a[name], parts[f"{module}.lora_B.weight"], parts[f"{module}.lora_A.weight"], 6 / 4)
    fm.run(located({"merge_method": "passthrough", "models": [model("a+lora")]}, both), tmp_path / "whole")
    slices = [{"sources": [source("a", 0, 1)]}, {"sources": [source("a+lora", 1, 3)]}]
    fm.run(located({"merge_method": "passthrough", "slices": slices}, both), tmp_path / "slices")
    for out in (tmp_path / "whole", tmp_path / "slices"):
        merged = read(out)
        assert torch.equal(merged[name], expected)
        assert all(torch.equal(merged[other], a[other]) for other in a if other != name)
        assert json.loads((out / "config.json").read_text()) == llama.config(3)
        fm.verify(out, samples=None)


# Tokens


def with_tokens(folder: Path, seed: int, tokens: str, added: tuple[str, ...] = (), rows: int | None = None) -> Path:
    """A model whose tokens are the letters of a text, and some that were added."""
    rows = len(tokens) + len(added) if rows is None else rows
    write(folder, state(seed, torch.float32, llama.shapes(1, rows)), llama.config(1, rows))
    return write_tokenizer(folder, list(tokens), added)


def test_the_union_of_tokens(tmp_path: Path) -> None:
    """Base's tokens, then the others'; a model's row is its own, the only one there is, or base's."""
    folders = {
        "base": with_tokens(tmp_path / "base", 0, "abc", ("<s>",), rows=6),
        "a": with_tokens(tmp_path / "a", 1, "cba", ("<a>",)),
        "b": with_tokens(tmp_path / "b", 2, "abx"),
    }
    config = based("task_arithmetic", model("a", weight=1.0), model("b", weight=0.5)) | {"tokenizer_source": "union"}
    fm.run(located(config, folders), tmp_path / "out")
    base, a, b = (read(folders[name])["lm_head.weight"] for name in ("base", "a", "b"))
    rows: list[tuple[Tensor, Tensor, Tensor]] = [
        (base[0], a[2], b[0]),  # a
        (base[1], a[1], b[1]),  # b
        (base[2], a[0], base[2]),  # c, which b lacks
        (base[3], base[3], base[3]),  # <s>, base's alone
        (b[2], b[2], b[2]),  # x
        (a[3], a[3], a[3]),  # <a>
    ]
    expected = torch.stack([x + ((y - x) + 0.5 * (z - x)) for x, y, z in rows])
    assert torch.equal(read(tmp_path / "out")["lm_head.weight"], expected)
    document = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert [(entry["content"], entry["id"]) for entry in document["added_tokens"]] == [("<s>", 3), ("x", 4), ("<a>", 5)]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 6
    fm.verify(tmp_path / "out", samples=None)


def test_tasks_need_the_tokens_of_base(tmp_path: Path) -> None:
    """A task's model is made of base as it lies on disk; models may have other tokens."""
    folders = {"base": with_tokens(tmp_path / "base", 0, "abc"), "a": with_tokens(tmp_path / "a", 1, "abd")}
    config = located(based("emr", model("a")), folders)
    assert problems(config | {"tokenizer_source": "union"}) == [
        "merge_method: emr needs base for its tasks as it is, without slices and other tokens"
    ]
    fm.run(config | {"tokenizer_source": "base"}, tmp_path / "out")
    fm.task(tmp_path / "out", "a", tmp_path / "again")
    base, a, again = (read(place)["lm_head.weight"] for place in (folders["base"], folders["a"], tmp_path / "again"))
    torch.testing.assert_close(again, torch.stack([a[0], a[1], base[2]]))


def test_said_tokens_means_and_padding(tmp_path: Path) -> None:
    """A token's source may be said; without base, models that lack one have the mean of the others; rows are padded by
    the mean of all, and cut where there are no tokens for them."""
    folders = {
        "a": with_tokens(tmp_path / "a", 0, "ab", rows=5),
        "b": with_tokens(tmp_path / "b", 1, "abc"),
        "c": with_tokens(tmp_path / "c", 2, "abc"),
    }
    tokens: Config = {"<z>": {"source": {"kind": "zero"}}}
    tokens["<b>"] = {"source": {"kind": "model_token", "model": str(folders["b"]), "token": "b"}}
    tokens["a"] = {"source": str(folders["c"]), "force": True}
    config: Config = {"merge_method": "linear", "models": [model(name, weight=1) for name in "abc"]}
    config["tokenizer"] = {"source": str(folders["b"]), "tokens": tokens, "pad_to_multiple_of": 4}
    fm.run(located(config, folders), tmp_path / "out")
    a, b, c = (read(folders[name])["lm_head.weight"] for name in "abc")
    rows = torch.stack([c[0], (a[1] + b[1] + c[1]) / 3, (b[2] + c[2]) / 2, torch.zeros(16), b[1]])
    merged = read(tmp_path / "out")["lm_head.weight"]
    torch.testing.assert_close(merged[:5], rows)
    torch.testing.assert_close(merged[5:], rows.mean(0).expand(3, 16))


def test_the_same_tokens_are_not_touched(folders: dict[str, Path], tmp_path: Path) -> None:
    """Where all models have the same tokens, embeddings are merged as they lie."""
    made = {}
    for name, folder in folders.items():
        made[name] = write_tokenizer(
            write(tmp_path / name, read(folder), llama.config(3)), [chr(97 + i) for i in range(40)]
        )
    plan = read_recipe(located(TIES | {"tokenizer_source": "base"}, made)).plan()
    assert not any(map(is_computed, (info for tensor in plan.alignment.tensors for info in tensor.models)))


def test_buffers_of_positions_are_left_out(folders: dict[str, Path], tmp_path: Path) -> None:
    """As in mergekit: some versions stored them, others did not."""
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    b = write(tmp_path / "b", read(folders["b"]) | buffer, llama.config(3))
    report = fm.run(located(TIES, folders | {"b": b}), tmp_path / "out")
    assert any("inv_freq" in note for note in report.notes)
    assert read(tmp_path / "out").keys() == read(folders["a"]).keys()


@pytest.mark.parametrize("template", ["{{ messages }}", "chatml", "auto"])
def test_chat_templates(template: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """A text, a name, or the one that most models have."""
    made = {}
    for name, own in (("base", "{{ 1 }}"), ("a", "{{ 2 }}"), ("b", "{{ 2 }}")):
        folder = write(tmp_path / name, read(folders[name]), llama.config(3))
        made[name] = write_tokenizer(folder, ["a"], template=own)
    fm.run(located(TIES | {"chat_template": template}, made), tmp_path / "out")
    said = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["chat_template"]
    assert {"{{ messages }}": template, "auto": "{{ 2 }}"}.get(template, said) == said
    assert "im_start" in said or template != "chatml"


# What is wrong


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (changed(TIES, "merge_method", value="tie"), "merge_method: unknown method 'tie'; did you mean 'ties'?"),
        (
            changed(TIES, "merge_metod", value=1),
            "merge_metod: there is no 'merge_metod' here; did you mean 'merge_method'",
        ),
        (
            changed(TIES, "models", 0, "parameters", "densty", value=1),
            "models[0].parameters.densty: ties has no parameter",
        ),
        (changed(TIES, "models", 0, "parameters", "densty", value=1), "did you mean 'density'?"),
        (
            changed(TIES, "random_seed", value=0),
            "random_seed: mergekit ignores it; leave it out, or ask for it by param",
        ),
        (
            changed(TIES, "parameters", "lamda", value=1),
            "parameters.lamda: ties has no parameter 'lamda'; did you mean",
        ),
        (changed(TIES, "models", 0, "parameters", "normalize", value=True), "is of the merge, not of a model"),
        (
            changed(TIES, "models", 0, "modle", value="x"),
            "models[0].modle: there is no 'modle' here; did you mean 'model'",
        ),
        (changed(TIES, "models", 0, "parameters", "weight", value="much"), "weight is 'much'; expected a number"),
        (changed(TIES, "parameters", "weight", value=[{"vaule": 1}]), "weight[0]: there is no 'vaule' of a condition"),
        (changed(TIES, "parameters", "normalize", value="maybe"), "normalize is 'maybe'; expected true or false"),
        (changed(TIES, "dtype", value="bf16"), "dtype is 'bf16'; "),
        (changed(TIES, "slices", value=SLICED["slices"]), "models and slices are given"),
        ({"merge_method": "linear"}, "give one of models, slices and modules: none is given"),
        (changed(SLICED, "slices", 0, "sources", 0, "layer_rang", value=[0, 1]), "sources[0].layer_rang: there is no"),
        (
            changed(TIES, "tokenizer", value={"souce": "base"}),
            "tokenizer.souce: there is no 'souce' here; did you mean 'source'",
        ),
        (TIES | {"tokenizer": {"source": "base"}, "tokenizer_source": "base"}, "leave one out"),
        (changed(TIES, "merge_method", value="ram"), "it is not one of fastmerge's methods yet"),
        (based("emr", model("a"), rescal="global"), "parameters.rescal: emr has no parameter 'rescal'; did you mean"),
        (based("free", model("a"), expert_density=2), "parameters.expert_density is 2; "),
        (based("emr", model("a"), task="a"), "parameters.task: leave it out; `fastmerge task MERGED a`"),
        (based("fr", model("a"), task="a"), "parameters.task: fr has no parameter 'task'"),
    ],
)
def test_bad_configurations(config: Config, said: str) -> None:
    """Unknown keys and wrong values are told by their path, with the nearest right name."""
    found = problems(config)
    assert any(said in problem for problem in found), found


def test_all_problems_at_once() -> None:
    config = changed(TIES, "parameters", value={"lamda": 1, "normalize": "maybe"})
    found = problems(changed(config, "models", 0, "parameters", "weight", value="x"))
    assert len(found) == 3 + len(["base", "a", "b"])  # which are not there


def without(names: Callable[[str], bool]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not names(name)}


@pytest.mark.parametrize(
    ("config", "change", "said"),
    [
        (changed(TIES, "base_model", value=None), None, "models: ties needs a base_model"),
        (changed(TIES, "models", 1, value=model("b")), None, "parameter weight of"),
        (
            changed(TIES, "models", 1, value=model("b", weight={"filter": "mlp", "value": 1})),
            None,
            "no filter of it holds for 'lm_head.weight' and 20 more",
        ),
        (TIES, without(lambda name: ".layers.2." in name), "b has 2 layers (model.layers), "),
        (
            TIES,
            without(lambda name: "1.mlp.up_proj" in name),
            "tensor 'model.layers.1.mlp.up_proj.weight' of base is missing",
        ),
        (TIES, lambda t: t | {"model.embed_tokens.weight": torch.ones(41, 16)}, "tokenizer: {source: union}"),
        (TIES | {"tokenizer_source": "union"}, None, "has none (tokenizer.json)"),
        (changed(TIES, "models", 1, "model", value="a"), None, "is there 2 times"),
        (changed(SLICED, "slices", 1, "sources", 0, "layer_range", value=[1, 9]), None, "layer_range is [1, 9]; "),
        (
            changed(SLICED, "slices", 1, "sources", value=[source("a", 0, 1), source("b", 0, 1)]),
            None,
            "passthrough merges 1 model, these are 2",
        ),
        (changed(SLICED, "merge_method", value="slerp") | {"parameters": {"t": 0.5}}, None, "slerp needs a base_model"),
        (based("slerp", model("a"), model("b"), t=0.5), None, "slerp merges 1 model beside base_model, these are 2"),
        ({**BASED, "merge_method": "emr", "parameters": {}}, None, "emr needs base for its tasks as it is"),
        (based("fr", model("a", coefficient=[0, 1])), None, "coefficients holds for the whole model"),
        (changed(BASED, "slices", 0, "base_model", value="b"), None, "slices[0]: base_model"),
        (TIES | {"chat_template": "alpaca"}, None, "chat_template: 'alpaca' is one of mergekit's own"),
    ],
)
def test_found_before_weights_are_read(
    config: Config,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None,
    said: str,
    folders: dict[str, Path],
    tmp_path: Path,
    no_weights: None,
) -> None:
    """What users of mergekit meet while it merges, or never."""
    made = dict(folders)
    if change is not None:
        made["b"] = write(tmp_path / "b", change(read(folders["b"])), llama.config(3))
    config = {key: value for key, value in config.items() if value is not None}
    with pytest.raises(InputError) as error:
        fm.run(located(config, made), tmp_path / "out")
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


def test_slices_of_a_model_of_several_stacks(tmp_path: Path) -> None:
    """Whose they are has to be said."""
    tensors = {f"{part}.block.{i}.weight": torch.ones(2) for part in ("encoder", "decoder") for i in range(3)}
    config = {"merge_method": "passthrough", "slices": [{"sources": [source("a", 0, 2)]}]}
    (problem,) = problems(config, {"a": write(tmp_path / "a", tensors, {})})
    assert "has several stacks (decoder.block, encoder.block); write modules: {NAME: {slices: …}, …}" in problem


def test_places(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are looked for from the working directory on, then from the file on; both kinds of recipe are planned."""
    root = folders["a"].parent
    file = tmp_path / "config.yml"
    file.write_text(yaml.safe_dump(changed(TIES, "models", 0, "model", value={"model": {"path": "a"}})))
    monkeypatch.chdir(root)
    assert fm.plan(str(file)).inputs.keys() == {"base", "a", "b"}
    monkeypatch.chdir(tmp_path)
    beside = root / "config.yml"
    beside.write_text(file.read_text())
    assert fm.plan(beside).sources["a"] == str(root / "a")
    file.write_text(yaml.safe_dump(TIES | {"parameters": {"densty": 1}}))
    with pytest.raises(InputError, match=r"config.yml: .*densty"):
        fm.plan(file)


@pytest.mark.parametrize("config", [TIES, BASED], ids=["whole", "slices"])
def test_inputs_that_have_moved_are_verified(config: Config, folders: dict[str, Path], tmp_path: Path) -> None:
    """By their names in the record; and other ones are not taken for them."""
    made = {name: write(tmp_path / name, read(folder), llama.config(3)) for name, folder in folders.items()}
    fm.run(located(config, made), tmp_path / "out")
    for name in ("base", "a"):
        made[name].rename(tmp_path / f"{name} moved")
    moved: dict[str, Any] = {"base": tmp_path / "base moved", "models": {"a": tmp_path / "a moved"}}
    assert not fm.verify(tmp_path / "out", **moved, samples=None).problems
    with pytest.raises(fm.errors.VerifyError, match="is not what its inputs give"):
        fm.verify(tmp_path / "out", **{**moved, "base": folders["b"]}, samples=None)


def test_inputs_are_not_overwritten(folders: dict[str, Path]) -> None:
    """Not even those of which a slice takes a layer."""
    with pytest.raises(InputError, match="would overwrite the input"):
        read_recipe(located(SLICED, folders)).plan(folders["b"], overwrite=True)
