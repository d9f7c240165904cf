"""Adapters as inputs: a merge of adapters is, to the byte, the merge of the models that they make of base."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from adapters import added, lora, write_adapter
from folders import read, state, weights, write
from torch import Tensor

import fastmerge as fm
from fastmerge.errors import InputError
from fastmerge.formats.models import open_model
from fastmerge.recipe.memory import BLOCK

SHAPES = {
    "embed.weight": (50, 24),
    "layers.0.q.weight": (40, 24),
    "layers.0.q.bias": (40,),
    "layers.1.q.weight": (40, 24),
    "layers.1.big.weight": (1031, 301),
    "norm.weight": (24,),
}
MODULES = {"layers.0.q": (40, 24), "layers.1.q": (40, 24), "layers.1.big": (1031, 301)}


def base_state(dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    return state(0, dtype, SHAPES)


def expanded(base: dict[str, Tensor], tensors: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    result = dict(base)
    for module in MODULES:
        up, down = tensors[f"{module}.lora_B.weight"], tensors[f"{module}.lora_A.weight"]
        result[f"{module}.weight"] = added(base[f"{module}.weight"], up, down, scale)
    return result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("method", [
    "linear", "task_arithmetic", "magmax", "emr", "ties", "dare_linear", "dare_ties", "della", "breadcrumbs",
    "tall_masks", "slerp", "fr", "free",
])  # fmt: skip
def test_merging_adapters_is_merging_the_models_they_make(tmp_path: Path, method: str, dtype: torch.dtype) -> None:
    """The same bytes, from a buffer of many chunks and of few."""
    base = base_state(dtype)
    write(tmp_path / "base", base)
    adapters, models = {}, {}
    for k in range(1 if method == "slerp" else 3):
        own = lora(MODULES, 4, k + 1, torch.bfloat16 if k == 1 else torch.float32)
        adapters[f"m{k}"] = write_adapter(tmp_path / f"a{k}", own)
        models[f"m{k}"] = write(tmp_path / f"m{k}", expanded(base, own, 6 / 4))
    params = {"t": 0.4} if method == "slerp" else {}
    fm.merge(method, tmp_path / "base", models, tmp_path / "by-models", params)
    fm.merge(method, tmp_path / "base", adapters, tmp_path / "by-adapters", params)
    assert weights(tmp_path / "by-adapters") == weights(tmp_path / "by-models")
    if method not in ("fr", "free"):
        fm.merge(method, tmp_path / "base", adapters, tmp_path / "small", params, memory="10MB")
        assert weights(tmp_path / "small") == weights(tmp_path / "by-models")
    assert not fm.verify(tmp_path / "by-adapters", samples=None).problems


def test_a_chunk_is_smaller_where_memory_is(tmp_path: Path) -> None:
    """The test above has seen tensors that are cut."""
    write(tmp_path / "base", base_state())
    folder = write_adapter(tmp_path / "a", lora(MODULES, 4, 1))
    assert fm.plan("linear", tmp_path / "base", {"a": folder}, memory="10MB").chunk < math.prod(
        SHAPES["layers.1.big.weight"]
    )
    assert fm.plan("linear", tmp_path / "base", {"a": folder}, memory="10MB").chunk % BLOCK == 0


@pytest.mark.parametrize("written", ["adapter", "model+adapter"])
def test_an_adapter_alone_is_its_model(tmp_path: Path, written: str) -> None:
    base, own = base_state(), lora(MODULES, 4, 1)
    write(tmp_path / "base", base)
    write_adapter(tmp_path / "a", own)
    spec = f"{tmp_path / 'base'}+{tmp_path / 'a'}"
    if written == "adapter":
        fm.merge("task_arithmetic", tmp_path / "base", {"a": tmp_path / "a"}, tmp_path / "out")
    else:
        fm.merge("linear", None, {"a": spec}, tmp_path / "out")
    result, expected = read(tmp_path / "out"), expanded(base, own, 6 / 4)
    for name, tensor in expected.items():
        assert (result[name].float() - tensor.float()).abs().max() <= (0 if written != "adapter" else 0.04), name
    if written != "adapter":
        assert not fm.verify(tmp_path / "out").problems


def test_what_is_told_of_each_module(tmp_path: Path) -> None:
    """Ranks and alphas by pattern, rank-stabilised; whole tensors in base's place; embeddings; trained biases."""
    base = base_state(torch.float32)
    write(tmp_path / "base", base)
    own = lora({"layers.0.q": (40, 24)}, 4, 1) | lora({"layers.1.q": (40, 24)}, 2, 2)
    generator = torch.Generator().manual_seed(3)
    own["embed.lora_embedding_A"] = torch.randn(4, 50, generator=generator)
    own["embed.lora_embedding_B"] = torch.randn(24, 4, generator=generator)
    own["layers.0.q.base_layer.bias"] = torch.randn(40, generator=generator)
    own["norm.weight"] = torch.randn(24, generator=generator)
    config = {"rank_pattern": {r"layers\.1\.q": 2}, "alpha_pattern": {"1.q": 5}, "use_rslora": True}
    write_adapter(tmp_path / "a", own, **config)
    fm.merge("linear", None, {"a": f"{tmp_path / 'base'}+{tmp_path / 'a'}"}, tmp_path / "out")
    result = read(tmp_path / "out")
    a, b = (own[f"layers.0.q.lora_{x}.weight"] for x in "AB")
    assert result["layers.0.q.weight"].equal(added(base["layers.0.q.weight"], b, a, 6 / math.sqrt(4)))
    a, b = (own[f"layers.1.q.lora_{x}.weight"] for x in "AB")
    assert result["layers.1.q.weight"].equal(added(base["layers.1.q.weight"], b, a, 5 / math.sqrt(2)))
    a, b = own["embed.lora_embedding_A"], own["embed.lora_embedding_B"]
    assert result["embed.weight"].equal(added(base["embed.weight"], a.t(), b.t(), 6 / math.sqrt(4)))
    assert result["layers.0.q.bias"].equal(own["layers.0.q.base_layer.bias"])
    assert result["norm.weight"].equal(own["norm.weight"])
    assert result["layers.1.big.weight"].equal(base["layers.1.big.weight"])


def test_layers_that_base_stores_the_other_way_round(tmp_path: Path) -> None:
    """GPT-2's, told by fan_in_fan_out, by a shape that fits no other way, and by the kind of model."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"h.0.attn.c_attn": (8, 24), "h.0.attn.c_proj": (8, 8)}
    base = {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    write(tmp_path / "base", base, {"model_type": "gpt2"})
    write(tmp_path / "plain", base)
    own = lora({name: shape[::-1] for name, shape in shapes.items()}, 4, 1)
    write_adapter(tmp_path / "said", own, fan_in_fan_out=True)
    write_adapter(tmp_path / "unsaid", own, fan_in_fan_out=False)
    for k, spec in enumerate(["plain+said", "base+unsaid"]):
        model, adapter = spec.split("+")
        fm.merge("linear", None, {"a": f"{tmp_path / model}+{tmp_path / adapter}"}, tmp_path / f"out{k}")
        result = read(tmp_path / f"out{k}")
        for name in shapes:
            a, b = own[f"{name}.lora_A.weight"], own[f"{name}.lora_B.weight"]
            assert result[f"{name}.weight"].equal(added(base[f"{name}.weight"], a.t(), b.t(), 1.5)), name


@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "Conv1D"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_rescaled_activations_are_rescaled_weights(tmp_path: Path, dtype: torch.dtype, transposed: bool) -> None:
    """(IA)³: rows of keys and values, with their biases; columns of a feedforward module."""
    base = base_state(dtype)
    if transposed:
        base |= {f"{m}.weight": base[f"{m}.weight"].t().contiguous() for m in MODULES}
    write(tmp_path / "base", base)
    generator = torch.Generator().manual_seed(3)
    rows, columns = torch.randn(40, 1, generator=generator), torch.randn(1, 301, generator=generator)
    own = {"layers.0.q.ia3_l": rows, "layers.1.big.ia3_l": columns}
    write_adapter(tmp_path / "a", own, peft_type="IA3", fan_in_fan_out=transposed)
    fm.merge("linear", None, {"a": f"{tmp_path / 'base'}+{tmp_path / 'a'}"}, tmp_path / "out")
    result = read(tmp_path / "out")
    factors = {"layers.0.q.weight": rows, "layers.1.big.weight": columns}
    for name, factor in factors.items():
        factor = factor.t() if transposed else factor
        assert result[name].equal((base[name].float() * factor).to(dtype)), name
    assert result["layers.0.q.bias"].equal((base["layers.0.q.bias"].float() * rows.view(-1)).to(dtype))
    assert result["layers.1.q.weight"].equal(base["layers.1.q.weight"])


def test_convolutions(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    base = {"conv.weight": torch.randn(6, 5, 3, 3, generator=generator)}
    own = {
        "conv.lora_A.weight": torch.randn(4, 5, 3, 3, generator=generator),
        "conv.lora_B.weight": torch.randn(6, 4, 1, 1, generator=generator),
    }
    write(tmp_path / "base", base)
    write_adapter(tmp_path / "a", own)
    fm.merge("linear", None, {"a": f"{tmp_path / 'base'}+{tmp_path / 'a'}"}, tmp_path / "out")
    a, b = own["conv.lora_A.weight"].view(4, -1), own["conv.lora_B.weight"].view(6, 4)
    assert read(tmp_path / "out")["conv.weight"].equal(added(base["conv.weight"], b, a, 1.5))


def test_modules_under_another_prefix_are_found(tmp_path: Path) -> None:
    base, own = base_state(), lora(MODULES, 4, 1)
    write(tmp_path / "base", base)
    write_adapter(tmp_path / "a", {f"model.{name}": t for name, t in own.items()})
    opened = open_model(f"{tmp_path / 'base'}+{tmp_path / 'a'}", "m")
    assert set(opened.tensors) == set(base)
    assert "'model.'" in " ".join(opened.notes)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "LOHA"}, "type LOHA"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"trainable_token_indices": [1]}, "single tokens"),
        ({"r": 8}, "its rank is 4, the configuration says 8"),
        ({"r": "x"}, "no rank and no alpha"),
        ({"r": 0}, "no rank and no alpha"),
        ({"lora_alpha": None}, "no rank and no alpha"),
        ({"rank_pattern": {"(": 4}}, "no rank and no alpha"),
        ({"alpha_pattern": [4]}, "no rank and no alpha"),
    ],
    ids=["dora", "loha", "pissa", "tokens", "rank", "text", "zero", "none", "regex", "list"],
)
def test_what_cannot_be_expanded_is_refused_with_a_reason(tmp_path: Path, config: dict[str, object], says: str) -> None:
    write(tmp_path / "base", base_state())
    write_adapter(tmp_path / "a", lora(MODULES, 4, 1), **config)
    with pytest.raises(InputError, match=says):
        fm.plan("linear", tmp_path / "base", {"a": tmp_path / "a"})


@pytest.mark.parametrize("shape", [(), (1,), (40,), (1, 40), (24, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("part", ["lora_A.weight", "lora_B.weight", "lora_embedding_B", "ia3_l"])
def test_shapes_of_every_kind_are_problems(tmp_path: Path, part: str, shape: tuple[int, ...]) -> None:
    """Files come from anywhere: what does not fit is a problem with the module's name, whatever it is."""
    write(tmp_path / "base", base_state())
    own = {f"layers.0.q.{part}": torch.ones(shape)}
    if part != "ia3_l":
        other = part.replace("_A", "_C").replace("_B", "_A").replace("_C", "_B")
        own[f"layers.0.q.{other}"] = torch.ones(4, 25)
    write_adapter(tmp_path / "a", own, peft_type="IA3" if part == "ia3_l" else "LORA")
    with pytest.raises(InputError, match=r"layers\.0\.q"):
        fm.plan("linear", tmp_path / "base", {"a": tmp_path / "a"})


def test_all_that_does_not_fit_is_told_at_once(tmp_path: Path) -> None:
    write(tmp_path / "base", base_state())
    own = lora({"layers.0.q": (40, 25), "layers.9.q": (40, 24)}, 4, 1)
    del own["layers.9.q.lora_A.weight"]
    own |= {"layers.1.q.lora_A.weight": torch.zeros(4, 24)}
    write_adapter(tmp_path / "a", own)
    write_adapter(tmp_path / "b", lora({"layers.0.q": (40, 24)}, 4, 1), use_dora=True)
    with pytest.raises(InputError) as caught:
        fm.plan("linear", tmp_path / "base", {"a": tmp_path / "a", "b": tmp_path / "b"})
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    for says in ("[40, 25]", "'layers.9.q'", "lacks the matrix B of 'layers.1.q'", "b: "):
        assert says in text


def test_an_adapter_needs_something_to_stand_on(tmp_path: Path) -> None:
    base = base_state()
    write(tmp_path / "base", base)
    write_adapter(tmp_path / "a", lora(MODULES, 4, 1))
    with pytest.raises(
        InputError, match=r"a: .* is an adapter, and others are not; pass --base, or write MODEL\+ADAPTER"
    ):
        fm.plan("linear", None, {"a": tmp_path / "a", "m": tmp_path / "base"})
    with pytest.raises(InputError, match=r"m: .* is no adapter"):
        fm.plan("linear", None, {"m": f"{tmp_path / 'base'}+{tmp_path / 'base'}"})


def test_matrices_without_their_scale_are_no_model(tmp_path: Path) -> None:
    write(tmp_path / "base", base_state())
    folder = write_adapter(tmp_path / "a", lora(MODULES, 4, 1))
    (folder / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"without an adapter_config\.json") as caught:
        fm.plan("linear", tmp_path / "base", {"a": folder})
    assert len(caught.value.problems) == 1


def test_tasks_need_a_base_that_lies_on_disk(tmp_path: Path) -> None:
    """An artefact goes back to its base; a base that is computed serves for methods that give one model."""
    base, own = base_state(), lora(MODULES, 4, 1)
    write(tmp_path / "base", base)
    spec = f"{tmp_path / 'base'}+{write_adapter(tmp_path / 'a', own)}"
    write(tmp_path / "whole", expanded(base, own, 1.5))
    models = {"b": write_adapter(tmp_path / "b", lora(MODULES, 4, 2))}
    with pytest.raises(InputError, match="merge it into a folder first"):
        fm.plan("emr", spec, models)
    for name, start in (("one", spec), ("two", tmp_path / "whole")):
        fm.merge("task_arithmetic", start, models, tmp_path / name, {"scale": 0.3})
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


def test_the_name_of_another_base_is_a_note(tmp_path: Path) -> None:
    write(tmp_path / "base", base_state())
    write_adapter(tmp_path / "a", lora(MODULES, 4, 1), base_model_name_or_path="org/other")
    notes = fm.plan("linear", tmp_path / "base", {"a": tmp_path / "a"}).notes
    assert any("was trained on org/other" in note for note in notes)


def test_only_what_is_needed_is_read(tmp_path: Path) -> None:
    """base once, however many adapters, and the adapters."""
    base = base_state()
    write(tmp_path / "base", base)
    adapters = {f"a{k}": write_adapter(tmp_path / f"a{k}", lora(MODULES, 4, k)) for k in range(3)}
    told: list[int] = []
    report = fm.merge("ties", tmp_path / "base", adapters, tmp_path / "out", memory="10MB", progress=told.append)
    own = sum(t.nbytes for k in range(3) for t in lora(MODULES, 4, k).values())
    once = sum(t.nbytes for t in base.values()) + own
    assert sum(told) == report.bytes_read == fm.plan("ties", tmp_path / "base", adapters).bytes_read == once


def test_adapters_made_alike_merge_into_an_adapter(tmp_path: Path) -> None:
    """Without a base; and with one that is an adapter, such as what all began from."""
    own = [lora(MODULES, 4, k) for k in range(3)]
    folders = {
        f"a{k}": write_adapter(tmp_path / f"a{k}", t, base_model_name_or_path="org/x") for k, t in enumerate(own)
    }
    fm.merge("linear", None, folders, tmp_path / "out")
    fm.merge("ties", folders.pop("a0"), folders, tmp_path / "ties", {"density": 0.5})
    for name in ("out", "ties"):
        opened = open_model(tmp_path / name, "merged")
        assert opened.adapter == json.loads((tmp_path / "a1" / "adapter_config.json").read_text())
        assert [file.name for file in (tmp_path / name).glob("*.safetensors")] == ["adapter_model.safetensors"]
        assert not fm.verify(tmp_path / name).problems


def test_adapters_of_other_scales_are_not_merged_as_adapters(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", lora(MODULES, 4, 1))
    write_adapter(tmp_path / "b", lora(MODULES, 4, 2), lora_alpha=7, use_rslora=True)
    with pytest.raises(InputError) as caught:
        fm.plan("linear", None, {"a": tmp_path / "a", "b": tmp_path / "b"})
    assert ["lora_alpha" in caught.value.problems[0], "use_rslora" in caught.value.problems[1]] == [True, True]


def test_another_scale_is_another_merge(tmp_path: Path) -> None:
    """Statistics that were kept of an adapter do not serve for one with the same files and another alpha."""
    write(tmp_path / "base", base_state())
    folder = write_adapter(tmp_path / "a", lora(MODULES, 4, 1))
    params = {"coefficients": "global"}
    fm.merge("fr", tmp_path / "base", {"a": folder}, tmp_path / "one", params)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 12}))
    fm.merge("fr", tmp_path / "base", {"a": folder}, tmp_path / "two", params)
    assert weights(tmp_path / "one") != weights(tmp_path / "two")
    (tmp_path / "alone").mkdir()
    fm.merge("fr", tmp_path / "base", {"a": folder}, tmp_path / "alone" / "two", params)
    assert weights(tmp_path / "alone" / "two") == weights(tmp_path / "two")


def test_spectra_of_adapters(tmp_path: Path) -> None:
    base, own = base_state(), lora(MODULES, 4, 1)
    write(tmp_path / "base", base)
    folder = write_adapter(tmp_path / "a", own)
    write(tmp_path / "m", expanded(base, own, 1.5))
    one, two = (fm.spectrum(tmp_path / "base", {"a": model}) for model in (folder, tmp_path / "m"))
    assert one.power_left == two.power_left


def test_differences_of_adapters(tmp_path: Path) -> None:
    base, own = base_state(), lora(MODULES, 4, 1)
    write(tmp_path / "base", base)
    folder = write_adapter(tmp_path / "a", own)
    write(tmp_path / "m", expanded(base, own, 1.5))
    assert fm.diff(folder, tmp_path / "m", base=tmp_path / "base").total.change == 0
