"""add_merged_adapter against peft's add_weighted_adapter where both do the same, and against the products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastmerge as fm
from fastmerge.errors import InputError

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from fastmerge.bindings.peft import add_merged_adapter  # noqa: E402 - needs what may be missing

pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = ["math", "code", "law"]
TARGETS = ["q_proj", "down_proj"]


def live(ranks: tuple[int, ...] = (4, 4, 4), targets: Any = None, kind: str = "llama", **config: Any) -> Any:
    """A model with three trained adapters."""
    torch.manual_seed(0)
    if kind == "gpt2":
        base = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, n_positions=16)
        )
    else:
        base = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=64,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
            )
        )
    targets = targets or [TARGETS] * len(ranks)
    model = None
    for k, (name, rank) in enumerate(zip(NAMES, ranks, strict=False)):
        own = peft.LoraConfig(r=rank, lora_alpha=2 * rank + k, target_modules=targets[k], **config)
        if model is None:
            model = peft.get_peft_model(base, own, adapter_name=name)
        else:
            model.add_adapter(name, own)
    assert model is not None
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def products(model: Any, adapter: str) -> dict[str, Tensor]:
    """scale · B · A of an adapter, as peft computes it."""
    found = {}
    for name, layer in model.get_base_model().named_modules():
        if hasattr(layer, "get_delta_weight") and (adapter in layer.lora_A or adapter in layer.lora_embedding_A):
            found[name] = layer.get_delta_weight(adapter).detach().float()
    return found


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], atol: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.allclose(tensor, other[name], atol=atol), name


WEIGHTS = [0.7, -0.3, 0.5]


@pytest.mark.parametrize(
    ("how", "combination", "ranks"),
    [
        ("cat", "cat", (4, 2, 3)),
        ("svd", "svd", (4, 2, 3)),
        ("factors", "linear", (4, 4, 4)),
    ],
    ids=["cat", "svd", "factors"],
)
def test_weighted_sums_are_those_of_peft(how: Any, combination: str, ranks: tuple[int, ...]) -> None:
    model = live(ranks)
    model.add_weighted_adapter(NAMES, WEIGHTS, "theirs", combination_type=combination)
    add_merged_adapter(model, NAMES, "ours", "task_arithmetic", weights=WEIGHTS, how=how)
    assert_same(products(model, "ours"), products(model, "theirs"))


@pytest.mark.parametrize("how", ["factors", "svd", "cat"])
@pytest.mark.parametrize(
    ("method", "weights", "params", "share"),
    [
        ("linear", [2.0, 2.0, 2.0], {}, 1.0),
        ("linear", [1.0, 3.0, 0.5], {}, 1.0),
        ("task_arithmetic", [2.0, 1.0, 1.0], {"normalize": True, "scale": 0.3}, 0.3),
        ("task_arithmetic", [2.0, 1.0, 1.0], {"normalize": True, "scale": -0.3}, -0.3),
        ("ties", [2.0, 1.0, 3.0], {"density": 1.0, "scale": 0.5}, 0.5),
        ("ties", [1.0, 1.0, 1.0], {"density": 1.0, "merge": "mean"}, 1.0),
        ("magmax", None, {"scale": 0.5}, 0.5),
    ],
    ids=["linear", "linear, unequal", "scaled", "negative", "ties", "mean", "magmax"],
)
def test_means_of_equal_adapters_are_that_adapter(
    how: Any, method: str, weights: list[float] | None, params: dict[str, Any], share: float
) -> None:
    """Whatever the weights; the result's factor is applied once, not to A and to B."""
    if how == "cat" and method not in ("linear", "task_arithmetic"):
        pytest.skip("how='cat' sums")
    model = live()
    alike(model)
    add_merged_adapter(model, NAMES, "ours", method, weights=weights, how=how, **params)
    expected = {module: share * product for module, product in products(model, "math").items()}
    assert_same(products(model, "ours"), expected)


def alike(model: Any) -> None:
    """All adapters become the first."""
    with torch.no_grad():
        for layer in model.modules():
            if hasattr(layer, "lora_A"):
                for name in NAMES:
                    layer.scaling[name] = layer.scaling["math"]
                    layer.lora_A[name].weight.copy_(layer.lora_A["math"].weight)
                    layer.lora_B[name].weight.copy_(layer.lora_B["math"].weight)


def test_problems_of_factors_are_one_line_each() -> None:
    with pytest.raises(InputError) as error:
        add_merged_adapter(live((4, 2, 3)), NAMES, "ours", "linear", weights=WEIGHTS, how="factors")
    ranks, signs = error.value.problems
    assert "layers.0.self_attn.q_proj' and 3 more: the adapters have different ranks" in ranks
    assert "negative" in signs
    with pytest.raises(InputError, match="coefficients"):
        add_merged_adapter(live(), NAMES, "ours", "fr", coefficients=0.5, cutoff=0.3, how="factors")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("how", ["cat", "svd"])
def test_a_sum_of_full_rank_is_the_sum_of_products(how: Any, kind: str) -> None:
    targets = (
        [["c_attn", "wte"]] * 3 if kind == "gpt2" else [["embed_tokens", "k_proj"], TARGETS, ["k_proj", "up_proj"]]
    )
    model = live((3, 2, 4), targets, kind)
    kept = add_merged_adapter(
        model, NAMES, "ours", "task_arithmetic", weights=dict(zip(NAMES, WEIGHTS, strict=True)), how=how,
        **({"rank": 9} if how == "svd" else {}),
    )  # fmt: skip
    expected: dict[str, Tensor] = {}
    for name, weight in zip(NAMES, WEIGHTS, strict=True):
        for module, product in products(model, name).items():
            expected[module] = expected.get(module, torch.zeros(())) + weight * product
    assert_same(products(model, "ours"), expected)
    assert kept.keys() == expected.keys()
    assert min(kept.values()) > 1 - 1e-5


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("ties", {"density": 0.4}),
        ("ties", {"density": 0.4, "scope": "global"}),
        ("dare_linear", {"density": 0.5, "seed": 3}),
        ("magmax", {}),
        ("fr", {"cutoff": 0.3}),
    ],
    ids=["ties", "ties of all", "dare", "magmax", "fr"],
)
def test_any_method_merges_the_products(method: str, params: dict[str, Any]) -> None:
    """At full rank the new adapter is what merging the task vectors as state dicts gives."""
    model = live()
    states = {name: {f"{m}.weight": p for m, p in products(model, name).items()} for name in NAMES}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in states["math"].items()}
    expected = fm.merge_state_dicts(method, zeros, states, **params).state_dict
    kept = add_merged_adapter(model, NAMES, "ours", method, rank=32, **params)
    assert_same({f"{m}.weight": p for m, p in products(model, "ours").items()}, expected)
    assert min(kept.values()) > 1 - 1e-5


@pytest.mark.parametrize(
    ("how", "combination", "vote", "sign"),
    [
        ("svd", "ties_svd", "unweighted", "total"),
        ("svd", "ties_svd", "count", "frequency"),
        ("factors", "ties", "count", "frequency"),
    ],
    ids=["svd, total", "svd, frequency", "factors, frequency"],
)
def test_ties_as_peft_reads_it(how: Any, combination: str, vote: str, sign: str) -> None:
    """Votes without weights, and a mean over the adapters that agree."""
    model, weights, rank = live(), [1.0, 0.5, 2.0], 32 if how == "svd" else None
    model.add_weighted_adapter(
        NAMES, weights, "theirs", combination, svd_rank=rank, density=0.5, majority_sign_method=sign
    )
    add_merged_adapter(model, NAMES, "ours", weights=weights, how=how, rank=rank, density=0.5, vote=vote, merge="mean")
    assert_same(products(model, "ours"), products(model, "theirs"))


def test_a_lower_rank_keeps_what_it_says() -> None:
    model = live()
    kept = add_merged_adapter(model, NAMES, "all", "ties", rank=32) and add_merged_adapter(model, NAMES, "few", "ties")
    whole, few = products(model, "all"), products(model, "few")
    for module, share in kept.items():
        error = float(((whole[module] - few[module]) ** 2).sum() / (whole[module] ** 2).sum())
        assert share < 0.999
        assert error == pytest.approx(1 - share, abs=1e-4), module


def test_the_new_adapter_works_and_merges() -> None:
    model = live().eval()
    add_merged_adapter(model, NAMES, "ours", "task_arithmetic", how="cat", scale=0.5)
    model.set_adapter("ours")
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        before = model(tokens).logits
        after = model.merge_and_unload()(tokens).logits
    assert torch.allclose(before, after, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"adapters": ["maths"]}, "no adapter 'maths'; did you mean 'math'"),
        ({"adapters": []}, "no adapters"),
        ({"adapters": ["math", "math"]}, "given twice"),
        ({"name": "code"}, "already"),
        ({"how": "cat"}, "weighted sum"),
        ({"how": "sum"}, "'svd', 'cat' and 'factors'"),
        ({"how": "factors"}, "different ranks"),
        ({"rank": 0}, "rank"),
        ({"weights": [1.0]}, "1 weights for 3 models"),
        ({"densty": 0.5}, "densty"),
        ({"method": "emr"}, "keeps tasks apart"),
    ],
    ids=["unknown", "none", "twice", "taken", "cat", "how", "ranks", "rank", "weights", "parameter", "emr"],
)
def test_what_cannot_be_merged_leaves_the_model_as_it_was(arguments: dict[str, Any], says: str) -> None:
    model = live((4, 2, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=says):
        add_merged_adapter(model, **{"adapters": NAMES, "name": "ours", **arguments})
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(after[name].equal(tensor) for name, tensor in before.items())


def test_adapters_that_are_more_than_products_are_refused() -> None:
    model = live(use_dora=True)
    with pytest.raises(InputError, match="DoRA"):
        add_merged_adapter(model, NAMES, "ours")
    with pytest.raises(InputError, match="biases"):
        add_merged_adapter(live(bias="all", ranks=(4,)), ["math"], "ours")
    with pytest.raises(InputError, match="PeftModel"):
        add_merged_adapter(torch.nn.Linear(2, 2), ["math"], "ours")
