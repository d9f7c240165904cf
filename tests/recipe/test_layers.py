"""Depth from tensor names, and what a gradient is at a depth."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmerge.recipe.layers import at_depth, depths, has_gradient

LLAMA = {
    "lm_head.weight": 1,
    "model.embed_tokens.weight": 0,
    **{f"model.layers.{i}.mlp.up_proj.weight": Fraction(i, 11) for i in (0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9)},
    "model.norm.weight": 1,
}
T5 = {
    "shared.weight": 0,
    **{f"encoder.block.{i}.layer.1.DenseReluDense.wi.weight": Fraction(i, 3) for i in range(4)},
    "encoder.final_layer_norm.weight": 1,
    **{f"decoder.block.{i}.layer.0.SelfAttention.q.weight": Fraction(i, 1) for i in range(2)},
    "decoder.final_layer_norm.weight": 1,
}
CLIP = {
    "visual.conv1.weight": 0,
    "visual.class_embedding": 0,
    "visual.ln_pre.weight": 0,
    **{f"visual.transformer.resblocks.{i}.mlp.c_fc.weight": Fraction(i, 2) for i in range(3)},
    "visual.ln_post.weight": 1,
    "visual.proj": 1,
    "positional_embedding": 0,
    **{f"transformer.resblocks.{i}.attn.in_proj_weight": Fraction(i, 1) for i in range(2)},
    "ln_final.weight": 1,
    "logit_scale": 1,
}
MIXTURE = {f"model.layers.{i}.mlp.experts.{e}.w1.weight": Fraction(i, 2) for i in range(3) for e in range(4)}
VIT = {"cls_token": 0, "blocks.0.norm1.weight": 0, "blocks.1.norm1.weight": 1, "fc_norm.weight": 1, "head.2.weight": 1}
GPT_NEOX = {"gpt_neox.embed_in.weight": 0, "gpt_neox.layers.5.mlp.weight": 0, "embed_out.weight": 1}
PLAIN = {"net.0.weight": 0, "net.2.weight": Fraction(1, 2), "net.4.weight": 1, "out.weight": 1}


@pytest.mark.parametrize(
    "expected",
    [LLAMA, T5, CLIP, MIXTURE, VIT, GPT_NEOX, PLAIN],
    ids=[
        "llama",
        "t5: two stacks",
        "clip: two stacks",
        "experts are no layers",
        "head.2 is no layer",
        "one layer",
        "mlp",
    ],
)
def test_depths_of_architectures(expected: dict[str, object]) -> None:
    assert depths(list(expected)) == expected


def test_names_without_layers_have_no_depth() -> None:
    assert depths(["embed.weight", "norm.weight"]) == {}


@given(st.permutations(list(LLAMA)))
def test_depth_does_not_depend_on_file_order(names: list[str]) -> None:
    assert depths(names) == LLAMA


POINTS = st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=2, max_size=6)


@given(POINTS, st.integers(0, 5))
def test_points_are_met_exactly(points: list[float], number: int) -> None:
    number = min(number, len(points) - 1)
    assert at_depth({"layers": points}, Fraction(number, len(points) - 1)) == points[number]


@given(POINTS, st.fractions(0, 1, max_denominator=100))
def test_between_two_points_lies_between_them(points: list[float], depth: Fraction) -> None:
    first = min(int(depth * (len(points) - 1)), len(points) - 2)
    low, high = sorted(points[first : first + 2])
    assert low <= at_depth({"layers": points}, depth) <= high


def test_values_are_decimals() -> None:
    """What a user would write for the layer: densities are counted exactly, so 0.30000000000000004 is another one."""
    assert [at_depth({"layers": [0.1, 0.5, 0.9]}, Fraction(i, 4)) for i in range(5)] == [0.1, 0.3, 0.5, 0.7, 0.9]


def test_gradients_within_a_value() -> None:
    value = {"a": {"layers": [0, 1]}, "b": 3, "layers": 4, "c": [{"layers": (2, 4)}, 5]}
    assert at_depth(value, Fraction(1, 2)) == {"a": 0.5, "b": 3, "layers": 4, "c": [3.0, 5]}
    assert has_gradient(value)
    assert not has_gradient({"layers": 4, "b": [1, 2]})
