"""Preflight: checkpoints that fit are aligned; of those that do not, one report says what is wrong and what to do."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmerge.errors import InputError
from fastmerge.formats.checkpoint import Checkpoint
from fastmerge.formats.safetensors import TensorInfo
from fastmerge.recipe.preflight import Alignment, align

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}


def checkpoint(
    label: str, tensors: Mapping[str, Any], config: Mapping[str, Any] | None = None, notes: tuple[str, ...] = ()
) -> Checkpoint:
    """Tensors are shapes (of F32) or (dtype, shape)."""
    infos = {}
    for name, spec in tensors.items():
        dtype, shape = spec if spec and isinstance(spec[0], str) else ("F32", spec)
        infos[name] = TensorInfo(name, dtype, tuple(shape), Path(f"{label}.safetensors"), 0, 0)
    return Checkpoint(Path(label), label, infos, dict(config or {}), (), notes)


def problems_of(*args: Any, **kwargs: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        align(*args, **kwargs)
    return caught.value.problems


def names(alignment: Alignment) -> list[str]:
    return [plan.name for plan in alignment.tensors]


# What fits


def test_tensors_come_in_base_order_with_models_in_their_order() -> None:
    base = checkpoint("base", {"b": (2, 3), "a": (4,)})
    models = [checkpoint(label, {"a": (4,), "b": (2, 3)}) for label in ("z", "y", "x")]
    alignment = align(base, models)
    assert names(alignment) == ["b", "a"]
    for plan in alignment.tensors:
        assert [info.file.stem for info in plan.models] == ["z", "y", "x"]
        assert plan.base is base.tensors[plan.name]
        assert (plan.copy, plan.aliases) == (False, ())
    assert [plan.numel for plan in alignment.tensors] == [6, 4]


def test_dtypes_of_models_may_differ_and_base_gives_the_output() -> None:
    base = checkpoint("base", {"a": ("BF16", (2,))})
    (plan,) = align(base, [checkpoint("m", {"a": ("F32", (2,))}), checkpoint("n", {"a": ("F64", (2,))})]).tensors
    assert (plan.dtype, [info.dtype for info in plan.models]) == ("BF16", ["F32", "F64"])


def test_without_base_the_first_model_names_the_tensors() -> None:
    models = [checkpoint("m", {"b": (2,), "a": (2,)}), checkpoint("n", {"a": (2,), "b": (2,)})]
    alignment = align(None, models)
    assert names(alignment) == ["b", "a"]
    assert [plan.base for plan in alignment.tensors] == [None, None]
    assert "not in m" in problems_of(None, [models[0], checkpoint("n", {"a": (2,), "b": (2,), "c": (2,)})])[0]


@pytest.mark.parametrize("dtype", ["I64", "BOOL", "U8"])
def test_integers_are_copied(dtype: str) -> None:
    base = checkpoint("base", {"w": (2,), "ids": (dtype, (1, 4))})
    assert [plan.copy for plan in align(base, [checkpoint("m", {"w": (2,), "ids": (dtype, (1, 4))})]).tensors] == [
        False,
        True,
    ]


def test_notes_of_all_checkpoints_are_kept() -> None:
    base, model = checkpoint("base", {"a": (1,)}, notes=("base: x",)), checkpoint("m", {"a": (1,)}, notes=("m: y",))
    assert align(base, [model]).notes == ("base: x", "m: y")


# Dtypes


@pytest.mark.parametrize(
    ("base", "model", "says"),
    [
        ("I64", "I32", r"m: tensor 'a' is I32, base has I64"),
        ("I64", "F32", r"m: tensor 'a' is F32, base has I64"),
        ("F32", "I64", r"m: tensor 'a' is I64; BF16, F16, F32, F64 can be merged"),
        ("F32", "F8_E4M3", r"m: tensor 'a' is F8_E4M3; BF16"),
        ("F8_E4M3", "F32", r"base: tensor 'a' is F8_E4M3; BF16"),
        ("F32", "C64", r"m: tensor 'a' is C64; BF16"),
    ],
)
def test_dtypes_that_cannot_be_merged_are_named(base: str, model: str, says: str) -> None:
    (problem,) = problems_of(checkpoint("base", {"a": (base, (2,))}), [checkpoint("m", {"a": (model, (2,))})])
    assert re.match(says, problem)


def test_a_whole_model_of_the_wrong_dtype_is_not_listed_tensor_by_tensor() -> None:
    quantised = {f"w{i}": ("F8_E4M3", (2,)) for i in range(300)}
    problems = problems_of(checkpoint("base", dict.fromkeys(quantised, (2,))), [checkpoint("m", quantised)])
    assert len(problems) == 11
    assert "290 more" in problems[-1]


# Names and shapes


def test_problems_of_all_models_come_at_once() -> None:
    base = checkpoint("base", {"a": (2,), "b": (2,)})
    models = [checkpoint("m", {"a": (2,)}), checkpoint("n", {"a": (3,), "b": ("I64", (2,))})]
    problems = problems_of(base, models)
    assert [problem.split()[0] for problem in problems] == ["m:", "n:", "n:"]
    assert [name in problem for problem, name in zip(problems, ("'b'", "'a'", "'b'"), strict=True)] == [True] * 3


def test_a_misspelt_name_proposes_the_right_one() -> None:
    problems = problems_of(checkpoint("base", {"layer.weight": (2,)}), [checkpoint("m", {"layer.wieght": (2,)})])
    assert "m: tensor 'layer.weight' of base is missing; did you mean 'layer.wieght'?" in problems


def test_a_differing_shape_names_both_shapes() -> None:
    (problem,) = problems_of(checkpoint("base", {"a.w": (2, 3)}), [checkpoint("m", {"a.w": (3, 2)})])
    assert problem.startswith("m: tensor 'a.w' has shape [3, 2], base has [2, 3]")


@pytest.mark.parametrize("name", [EMBED, HEAD, "shared.weight", "bert.embeddings.word_embeddings.weight"])
def test_a_longer_vocabulary_is_called_so_and_no_task_specific_tensor(name: str) -> None:
    (problem,) = problems_of(checkpoint("base", {name: (100, 8)}), [checkpoint("m", {name: (101, 8)})])
    assert "[101, 8]" in problem
    assert "[100, 8]" in problem
    assert "resize_token_embeddings(100)" in problem
    assert "--task-specific" not in problem


def test_a_model_of_another_architecture_gives_a_short_report_at_once() -> None:
    """Nearest names are looked for where they are listed only: for all 3,000 it would take minutes."""
    base = checkpoint("base", {f"model.layers.{i}.mlp.gate_proj.weight": (2,) for i in range(3000)})
    problems = problems_of(base, [checkpoint("m", {f"transformer.h.{i}.ff.gate.weight": (2,) for i in range(3000)})])
    assert len(problems) == 22
    assert [problem for problem in problems if "more" in problem] == ["… and 2990 more like the last"] * 2


# Prefixes

NAMES = ["model.embed.weight", *(f"model.layers.{i}.w" for i in range(30)), "norm.w"]
SHAPES = dict.fromkeys(NAMES, (2, 2))


def proposed_renames(problems: list[str]) -> dict[str, list[tuple[str, str]]]:
    (problem,) = problems
    label, old, new = re.search(r"--rename ([^:]+):([^=]*)=(.*)$", problem).groups()
    return {label: [(old, new)]}


@pytest.mark.parametrize("stripped", [True, False], ids=["too much", "too little"])
def test_a_prefix_is_found_where_the_model_lacks_some_tensors_too(stripped: bool) -> None:
    """As of GPT-2, whose base stores no prefix, but a mask in every layer: what else is wrong is told next."""
    longer = {f"transformer.{name}": shape for name, shape in SHAPES.items()}
    base, model = (SHAPES, longer) if stripped else (longer, SHAPES)
    whole = {f"model.layers.{i}.attn.bias": (2, 2) for i in range(12)} | base
    (problem,) = problems_of(checkpoint("base", whole), [checkpoint("m", model | {"head.w": (2, 2)})])
    assert f"44 tensors of base are missing, 32 found with{'' if stripped else 'out'} the prefix" in problem
    rename = proposed_renames([problem])
    alignment = align(
        checkpoint("base", whole),
        [checkpoint("m", model | {"head.w": (2, 2)})],
        rename=rename,
        task_specific=["*.attn.bias", "*head.w"],
    )
    assert names(alignment) == list(base)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model.", "anything_"])
@pytest.mark.parametrize("stripped", [True, False], ids=["too much", "too little"])
def test_a_uniform_prefix_is_one_finding_whose_proposal_works(prefix: str, stripped: bool) -> None:
    longer = {prefix + name: shape for name, shape in SHAPES.items()}
    base, model = (SHAPES, longer) if stripped else (longer, SHAPES)
    arguments = checkpoint("base", base), [checkpoint("m", model), checkpoint("n", base)]
    rename = proposed_renames(problems_of(*arguments))
    assert rename == {"m": [(prefix, "") if stripped else ("", prefix)]}
    assert names(align(*arguments, rename=rename)) == list(base)


def test_a_prefix_is_found_beside_a_task_head() -> None:
    model = {f"bert.{name}": shape for name, shape in SHAPES.items()} | {"classifier.weight": (2, 2)}
    arguments = checkpoint("base", SHAPES), [checkpoint("m", model)]
    problems = problems_of(*arguments)
    assert f"m: {len(SHAPES)} tensors of base are missing, all found with the prefix 'bert.'" in problems[0]
    rename = proposed_renames(problems)
    alignment = align(*arguments, rename=rename, task_specific=["classifier.*"])
    assert [info.name for info in alignment.task_specific["m"]] == ["classifier.weight"]


def test_a_prefix_that_would_break_right_names_is_not_proposed() -> None:
    problems = problems_of(checkpoint("base", {"a": (2,), "p.b": (2,)}), [checkpoint("m", {"a": (2,), "b": (2,)})])
    assert not any("--rename" in problem for problem in problems)


@pytest.mark.parametrize(
    ("rename", "says"),
    [([("typo.", "")], "no tensor of m begins with 'typo.'"), ([("p.", "")], "gives 'a' to two tensors")],
    ids=["without effect", "two of one name"],
)
def test_renamings_that_cannot_be_meant_are_problems(rename: list[tuple[str, str]], says: str) -> None:
    model = checkpoint("m", {"a": (2,), "p.a": (2,)})
    assert any(
        says in problem for problem in problems_of(checkpoint("base", {"a": (2,)}), [model], rename={"m": rename})
    )


# Task-specific tensors


def test_heads_are_kept_per_task() -> None:
    base = checkpoint("base", {"w": (2,), "head.w": (10, 2)})
    models = [
        checkpoint("same", {"w": (2,), "head.w": (10, 2)}),
        checkpoint("other", {"w": (2,), "head.w": (3, 2), "head.b": (3,)}),
        checkpoint("none", {"w": (2,)}),
    ]
    alignment = align(base, models, task_specific=["head.*"])
    assert names(alignment) == ["w"]
    kept = {label: [(t.name, t.shape) for t in infos] for label, infos in alignment.task_specific.items()}
    assert kept == {"same": [("head.w", (10, 2))], "other": [("head.w", (3, 2)), ("head.b", (3,))], "none": []}
    assert [info.name for info in alignment.base_specific] == ["head.w"]


MODULES = st.sampled_from(["a", "b", "a.c", "h.0", "h.1", "h.1.c", "classifier", "logit[0]", "it's"])
SPECS = st.dictionaries(
    st.tuples(MODULES, st.sampled_from(["", ".weight", ".bias"])).map("".join),
    st.sampled_from([(2,), (3,)]),
    max_size=5,
)


@given(SPECS, SPECS)
def test_proposed_patterns_keep_apart_what_is_wrong_and_nothing_else(base, model) -> None:
    arguments = checkpoint("base", {"w": (2,)} | base), [checkpoint("m", {"w": (2,)} | model)]
    right = {"w"} | {name for name in base if model.get(name) == base[name]}
    patterns: list[str] = []
    try:
        alignment = align(*arguments)
    except InputError as error:
        for problem in error.problems:
            patterns += re.findall(r"--task-specific (.*)$", problem)
        patterns = [word for pattern in patterns for word in shlex.split(pattern)]
        missing = [p for p in error.problems if "is missing; did you mean" in p or "--rename" in p]
        if missing:  # another name is proposed instead
            return
        alignment = align(*arguments, task_specific=list(dict.fromkeys(patterns)))
    assert set(names(alignment)) == right


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("classifier.weight", "'classifier.*'"),
        ("logit_scale", "logit_scale"),
        ("embeddings.position_ids", "embeddings.position_ids"),
    ],
    ids=["a module", "no module", "beside tensors to merge"],
)
def test_the_proposed_pattern_is_the_module_only_if_all_of_it_is_wrong(name: str, pattern: str) -> None:
    base = checkpoint("base", {"embeddings.weight": (2,)})
    (problem,) = problems_of(base, [checkpoint("m", {"embeddings.weight": (2,), name: (3,)})])
    assert problem.endswith(f"pass --task-specific {pattern}")


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("h.{}.attn.rotary_emb.inv_freq", "'h.*.attn.rotary_emb.*'"),
        ("h.{}.attn.masked_bias", "'h.*.attn.masked_bias'"),
        ("h.{}.1.scale", "'h.*.*.*'"),
    ],
    ids=["a module", "beside tensors to merge", "numbers within"],
)
def test_the_proposed_pattern_is_of_every_layer(name: str, pattern: str) -> None:
    """Buffers that some versions store, once a layer, take one option."""
    shared = {f"h.{i}.attn.weight": (2,) for i in range(3)}
    shared = {"embed.weight": (2,)} if pattern == "'h.*.*.*'" else shared
    base = checkpoint("base", shared | {name.format(i): (3,) for i in range(3)})
    problems = problems_of(base, [checkpoint("m", shared)])
    assert len(problems) == 3
    assert all(problem.endswith(f"pass --task-specific {pattern}") for problem in problems)


@pytest.mark.parametrize(
    ("pattern", "says"), [("haed.*", "'haed.*' matches no tensor"), ("*", "nothing is left to merge")]
)
def test_patterns_that_cannot_be_meant_are_problems(pattern: str, says: str) -> None:
    problems = problems_of(checkpoint("base", {"a": (2,)}), [checkpoint("m", {"a": (2,)})], task_specific=[pattern])
    assert any(says in problem for problem in problems)


# Tied tensors

SIZE = (8, 2)
ASSUMED = (
    f"base: {HEAD} counts as tied to {EMBED}, since m stores not all of them; if they differ, let config.json say "
    "tie_word_embeddings: false"
)
ONE, BOTH = {EMBED: SIZE, "w": (2,)}, {EMBED: SIZE, "w": (2,), HEAD: SIZE}


@pytest.mark.parametrize("config", [TIED, {}, {"text_config": TIED}, {"text_config": None}], ids=str)
def test_an_alias_that_only_a_model_stores_is_ignored_with_a_note(config) -> None:
    alignment = align(checkpoint("base", ONE, config), [checkpoint("m", BOTH, config)])
    assert names(alignment) == [EMBED, "w"]
    assert HEAD in alignment.notes[0]


@pytest.mark.parametrize("config", [TIED, {}, {"text_config": TIED}, {"text_config": None}], ids=str)
def test_an_alias_that_only_base_stores_is_merged_once_and_written_twice(config) -> None:
    alignment = align(checkpoint("base", BOTH, config), [checkpoint("m", ONE, config), checkpoint("n", BOTH, config)])
    assert [(plan.name, plan.aliases) for plan in alignment.tensors] == [(EMBED, (HEAD,)), ("w", ())]
    assert [info.name for info in alignment.tensors[0].models] == [EMBED, EMBED]
    assert alignment.notes == (() if config == TIED or config == {"text_config": TIED} else (ASSUMED,))


def test_an_alias_that_all_store_is_merged_once_where_the_config_ties() -> None:
    alignment = align(checkpoint("base", BOTH, TIED), [checkpoint("m", BOTH, TIED)])
    assert [(plan.name, plan.aliases) for plan in alignment.tensors] == [(EMBED, (HEAD,)), ("w", ())]


def test_a_model_that_stores_only_the_other_name_serves() -> None:
    alignment = align(checkpoint("base", ONE, TIED), [checkpoint("m", {HEAD: SIZE, "w": (2,)}, TIED)])
    assert [info.name for info in alignment.tensors[0].models] == [HEAD]
    assert HEAD in alignment.notes[0]


def test_t5_names_are_one_tensor_whichever_are_stored() -> None:
    stored = ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", HEAD]
    base = checkpoint("base", dict.fromkeys(stored, SIZE), TIED)
    for name in stored:
        (plan,) = align(base, [checkpoint("m", {name: SIZE}, TIED)]).tensors
        assert {plan.name, *plan.aliases} == set(stored)
        assert plan.models[0].name == name


@pytest.mark.parametrize("config", [UNTIED, {}], ids=str)
def test_untied_heads_are_merged_on_their_own(config) -> None:
    alignment = align(checkpoint("base", BOTH, config), [checkpoint("m", BOTH, config)])
    assert [(plan.name, plan.aliases) for plan in alignment.tensors] == [(EMBED, ()), ("w", ()), (HEAD, ())]


@pytest.mark.parametrize("config", [TIED, {}], ids=str)
def test_a_head_that_one_model_trained_apart_is_not_lost(config) -> None:
    """Base ties, model m says that it does not: its head is merged as its own; the embeddings of n, which says the same
    as base or nothing, serve as n's head."""
    models = [checkpoint("m", BOTH, UNTIED), checkpoint("n", ONE, config)]
    plans = {plan.name: plan for plan in align(checkpoint("base", BOTH, TIED), models).tensors}
    assert [info.name for info in plans[HEAD].models] == [HEAD, EMBED]
    (problem,) = problems_of(checkpoint("base", ONE, TIED), models[:1])
    assert problem.startswith(f"m: tensor '{HEAD}' is not in base")


def test_an_untied_head_that_is_missing_is_not_made_up() -> None:
    base = checkpoint("base", BOTH, UNTIED)
    for model in (checkpoint("m", ONE, UNTIED), checkpoint("m", ONE | {"visual.embed_tokens.weight": SIZE}, UNTIED)):
        assert problems_of(base, [model])[0].startswith(f"m: tensor '{HEAD}' of base is missing")


def test_a_head_is_not_made_up_where_one_model_is_untied_and_nobody_says_that_others_are_tied() -> None:
    models = [checkpoint("m", BOTH, UNTIED), checkpoint("n", ONE)]
    (problem,) = problems_of(checkpoint("base", BOTH), models)
    assert problem.startswith(f"n: tensor '{HEAD}' of base is missing")


def test_encoder_and_decoder_embeddings_that_are_not_shared_stay_apart() -> None:
    stored = dict.fromkeys(["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"], SIZE)
    config = TIED | {"share_encoder_decoder_embeddings": False}
    assert names(align(checkpoint("base", stored, config), [checkpoint("m", stored, config)])) == list(stored)


def test_names_of_another_shape_are_not_tied() -> None:
    stored = {EMBED: SIZE, HEAD: (9, 2)}
    assert names(align(checkpoint("base", stored, TIED), [checkpoint("m", stored, TIED)])) == [EMBED, HEAD]
    (problem,) = problems_of(checkpoint("base", ONE, TIED), [checkpoint("m", ONE | {HEAD: ONE["w"]}, TIED)])
    assert problem.startswith(f"m: tensor '{HEAD}' is not in base")


def test_a_model_that_stores_none_of_the_names_does_not_tie_them() -> None:
    problems = problems_of(checkpoint("base", BOTH), [checkpoint("m", {"w": (2,)})])
    assert [problem.partition(" of base")[0] for problem in problems] == [f"m: tensor '{n}'" for n in (EMBED, HEAD)]
