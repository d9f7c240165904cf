"""Names that share their memory, or their bytes, are one tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from folders import near, read, state, write
from safetensors.torch import load_file
from tensors import assert_same_bits

import fastmerge as fm
from fastmerge.errors import InputError, MergeError


@pytest.mark.parametrize("method", ["linear", "emr"])
def test_tied_tensors_are_merged_once(method: str, tmp_path: Path) -> None:
    """Base stores embeddings and head, one model only the embeddings: written as base wrote them, and equal."""
    config = {"tie_word_embeddings": True}
    table = state(0, shapes={"model.embed_tokens.weight": (20, 4), "model.norm.weight": (4,)})
    write(tmp_path / "base", table | {"lm_head.weight": table["model.embed_tokens.weight"].clone()}, config)
    one, two = near(table, 1), near(table, 2)
    write(tmp_path / "one", one | {"lm_head.weight": one["model.embed_tokens.weight"].clone()}, config)
    write(tmp_path / "two", two, config)
    out = tmp_path / "out"
    fm.merge(method, tmp_path / "base", {"one": tmp_path / "one", "two": tmp_path / "two"}, out)
    if method == "emr":
        assert set(load_file(out / "unified.safetensors")) == set(table)
        fm.task(out, "one", tmp_path / "task")
        out = tmp_path / "task"
    result = read(out)
    assert list(result) == list(read(tmp_path / "base"))
    assert_same_bits(result["lm_head.weight"], result["model.embed_tokens.weight"], "tied")


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("dare_linear", {"density": 0.5}),
        ("ties", {"density": 0.2, "scope": "global"}),
        ("free", {"cutoff": 0.3, "expert_density": 0.1}),
        ("emr", {}),
    ],
)
def test_state_dicts_of_tied_weights_merge_as_their_files(method: str, params: dict[str, Any], tmp_path: Path) -> None:
    """Which have them once: in drops, ranks and sums they count once, and the result is tied, of a task too."""
    shapes = {"a.weight": (30, 40), "b.weight": (50,)}
    stored = {"base": state(0, torch.float32, shapes)}
    stored |= {task: near(stored["base"], k) for k, task in enumerate(("one", "two"), 1)}
    base, *models = (write(tmp_path / name, tensors) for name, tensors in stored.items())
    fm.merge(method, base, dict(zip(("one", "two"), models, strict=True)), tmp_path / "out", params=params)
    whole = {name: {**own, "z": own["a.weight"], "head": own["a.weight"]} for name, own in stored.items()}
    merged = fm.merge_state_dicts(method, whole.pop("base"), whole, **params)
    results = {"out": merged.state_dict} if method != "emr" else {}
    if method in ("emr", "free"):
        fm.task(tmp_path / "out", "two", tmp_path / "task")
        results["task"] = merged.task("two")
    for folder, result in results.items():
        for name, tensor in read(tmp_path / folder).items():
            assert_same_bits(result[name], tensor, name)
        assert result["z"] is result["a.weight"] is result["head"]


def test_state_dicts_are_tied_only_where_all_tie() -> None:
    table, other = torch.ones(20, 4), torch.zeros(20, 4)
    tied, apart = {"embed": table, "head": table}, {"embed": table, "head": other}
    for base, model in ((tied, apart), (apart, tied)):
        merged = fm.merge_state_dicts("linear", base, {"m": model}).state_dict
        assert torch.equal(merged["head"], model["head"])
        assert merged["head"] is not merged["embed"]
    own = fm.merge_state_dicts("linear", tied, {"m": tied}, task_specific=["head"])
    assert own.own["m"]["head"] is table
    three, two = dict.fromkeys("abc", table), {"a": table, "b": other, "c": other}
    merged = fm.merge_state_dicts("linear", three, {"m": two}).state_dict
    assert merged["b"] is merged["c"] is not merged["a"]


def test_a_pattern_of_a_further_name_is_told_the_first(tmp_path: Path) -> None:
    tied = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), torch.ones(20, 4))
    options: dict[str, Any] = {"tensors": [("lm_*", {"scale": 0.5})]}
    said = r"'lm_\*' matches no tensor that is merged; 'lm_head.weight' is tied to 'model.embed_tokens.weight': name "
    with pytest.raises(InputError, match=said):
        fm.merge_state_dicts("task_arithmetic", tied, {"m": tied}, **options)
    stored = {name: tensor.clone() for name, tensor in tied.items()}
    base, model = (write(tmp_path / name, stored, config={"tie_word_embeddings": True}) for name in ("base", "m"))
    with pytest.raises(InputError, match=said):
        fm.plan("task_arithmetic", base, {"m": model}, **options)


def test_a_head_of_bases_own_is_not_lost_in_memory() -> None:
    names = ("model.embed_tokens.weight", "lm_head.weight")
    both = dict(zip(names, (torch.ones(20, 4), torch.zeros(20, 4)), strict=True))
    one = {names[0]: torch.ones(20, 4)}
    for base, models in ((both, {"m": one}), (None, {"base": both, "m": one})):
        with pytest.raises(MergeError, match=r"base: the tensors .*differ, of which another model has one; give both"):
            fm.merge_state_dicts("linear", base, models)
    both[names[1]] = both[names[0]].clone()
    assert fm.merge_state_dicts("linear", both, {"m": one}).state_dict.keys() == both.keys()
