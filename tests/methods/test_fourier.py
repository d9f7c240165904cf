"""FR- and FREE-Merging: by hand, and against an implementation of their own with whole spectra in float64."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import fourier
import numpy as np
import pytest
import torch
from fourier import Array
from torch import Tensor

import fastmerge as fm
from fastmerge import ops
from fastmerge.errors import InputError, MergeError

SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (30, 8),
    "layers.0.attn.weight": (24, 40),
    "layers.0.mlp.weight": (31, 17),
    "layers.1.attn.weight": (1, 37),
    "layers.1.mlp.weight": (64, 64),
    "layers.1.mlp.experts.up": (3, 9, 14),
    "layers.1.conv.weight": (6, 5, 3, 2),
    "layers.1.position": (1, 7, 8),
    "layers.1.bias": (21,),
    "lm_head.weight": (30, 8),
}
DEFAULT = {name: SHAPES[name] for name in SHAPES if "attn" in name or "mlp" in name}
K = 3


def noise(seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: (torch.randn(s, generator=generator) + 0.3).to(dtype) for n, s in SHAPES.items()}


def family(dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Task vectors of different sizes, with a mean that low frequencies carry."""
    base = noise(0, dtype)
    scaled = {f"m{k}": (noise(k + 1, dtype), 0.01 * (k + 1)) for k in range(K)}
    return base, {m: {n: (base[n] + s * t[n]).to(dtype) for n in SHAPES} for m, (t, s) in scaled.items()}


def wide(state: dict[str, Tensor]) -> dict[str, Array]:
    return {name: t.double().numpy() for name, t in state.items()}


CASES: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "default": ({}, DEFAULT),
    "low cutoff, scaled": ({"cutoff": 0.05, "scale": 0.7}, DEFAULT),
    "nothing is removed": ({"cutoff": 0.0}, DEFAULT),
    "bins": ({"bins": 0.4, "coefficients": "mean_of_means"}, DEFAULT),
    "tensor": ({"coefficients": "tensor", "others": "base"}, DEFAULT),
    "sum": ({"coefficients": "sum", "align": "layer"}, DEFAULT),
    "numbers": ({"coefficients": [0.5, 0.25, 2.0], "align": "layer"}, DEFAULT),
    "released": ({"convention": "released"}, DEFAULT),
    "released, small": ({"convention": "released", "ratio": 0.35, "coefficients": "tensor"}, DEFAULT),
    "targets": ({"targets": ["*attn*", "lm_head*"]}, {n: SHAPES[n] for n in SHAPES if "attn" in n or "head" in n}),
    "exclude": ({"exclude": ["layers.1.*"]}, {n: s for n, s in DEFAULT.items() if n < "layers.1"}),
    "no stacks": ({"stacks": []}, {n: s for n, s in DEFAULT.items() if len(s) == 2}),
    "convolutions": ({"convolutions": True}, DEFAULT | {"layers.1.conv.weight": (6, 30)}),
    "vectors": ({"filter_1d": True, "cutoff": 0.9}, DEFAULT | {"layers.1.bias": (1, 21)}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_fr_against_whole_spectra(case: str, dtype: torch.dtype) -> None:
    params, filtered = CASES[case]
    base, models = family(dtype)
    result = fm.merge_state_dicts("fr", base, models, **params)
    expected, coefficients = fourier.merge(wide(base), [wide(m) for m in models.values()], filtered.get, params)
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-7, torch.bfloat16: 2**-8}[dtype]  # λ is rounded to float32
    for name, tensor in result.state_dict.items():
        np.testing.assert_allclose(
            tensor.double().numpy(), expected[name], rtol=tolerance, atol=tolerance, err_msg=name
        )
        key = f"coefficients of {name}" if params.get("coefficients") == "tensor" else "coefficients"
        assert list(result.stats[key].values()) == pytest.approx(coefficients[name], rel=1e-6)


PRESETS = {
    "released-vision": {
        "convention": "released",
        "ratio": 0.7,
        "coefficients": "sum",
        "scale": 0.7,
        "align": "layer",
        "targets": ["*attn*", "*mlp*"],
        "others": "base",
    },
    "released-llm": {"convention": "released", "ratio": 0.9},
}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset: str) -> None:
    base, models = family()
    named = fm.merge_state_dicts("fr", base, models, preset=preset).state_dict
    spelled = fm.merge_state_dicts("fr", base, models, **PRESETS[preset]).state_dict
    assert all(torch.equal(named[name], spelled[name]) for name in base)
    other = fm.merge_state_dicts("fr", base, models, preset=preset, scale=0.1).state_dict
    assert not torch.equal(other["layers.1.mlp.weight"], named["layers.1.mlp.weight"]), "what is given wins"


def test_a_filtered_tensor_is_highpass_merge() -> None:
    """To the bit, with coefficients rounded to float32."""
    base, models = family(torch.bfloat16)
    result = fm.merge_state_dicts("fr", base, models, scale=0.9)
    weights = list(result.stats["coefficients"].values())
    assert weights == [float(np.float32(w)) for w in weights]
    for name in DEFAULT:
        own = [m[name] for m in models.values()]
        assert torch.equal(result.state_dict[name], ops.highpass_merge(base[name], own, weights, scale=0.9).merged)


def test_fr_by_hand() -> None:
    """A 2 × 2 matrix, of which the default removes the mean: 0 2 / 4 10 loses its 4."""
    base = {"a.weight": torch.ones(2, 2)}
    model = {"a.weight": 1 + torch.tensor([[0.0, 2.0], [4.0, 10.0]])}
    assert fm.merge_state_dicts("fr", base, {"m": model}).state_dict["a.weight"].tolist() == [[-3, -1], [1, 7]]
    twice = fm.merge_state_dicts("fr", base, {"m": model, "same": model})
    assert twice.stats["coefficients"] == {"m": 0.5, "same": 0.5}
    assert twice.state_dict["a.weight"].tolist() == [[-3, -1], [1, 7]]


def test_models_equal_to_base() -> None:
    """No magnitude at all: base comes back, and experts do nothing."""
    base, _ = family()
    result = fm.merge_state_dicts("free", base, {"a": base, "b": base})
    assert all(torch.equal(result.state_dict[name], base[name]) for name in base)
    assert set(result.stats["scales"].values()) == {0.0}
    assert all(torch.equal(result.task("a")[name], base[name]) for name in base)


FREE_CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "released convention": {"convention": "released", "ratio": 0.35, "expert_density": 0.07},
    "global": {"scope": "global", "expert_density": 0.03},
    "row": {"scope": "row", "expert_density": 0.2},
    "paper": {"rescale": "paper", "expert_density": 0.05},
    "paper, numbers": {"rescale": "paper", "coefficients": [0.5, 0.25, 2.0]},
    "a number": {"rescale": 3.5, "coefficients": "sum"},
    "others base": {"others": "base", "align": "layer", "expert_density": 0.3},
    "others base, paper": {"others": "base", "rescale": "paper"},
    "everything": {"expert_density": 1.0},
}


def scale(k: int, taus: dict[str, Array], kept: dict[str, Any], params: dict[str, Any], weight: float) -> float:
    """μ_k from means over tensors of per-tensor means."""
    if isinstance(params.get("rescale"), float):
        return float(params["rescale"])
    names = [n for n in taus if kept[n].any() and (params.get("others") != "base" or n in DEFAULT)]
    experts = np.mean([np.abs(taus[n][kept[n]]).mean() for n in names])
    density = params.get("expert_density", 0.01)
    if params.get("rescale") == "paper":
        return float(-experts * math.log(density) / (weight * np.mean([np.abs(taus[n]).mean() for n in names])))
    filtered = [fourier.highpass(taus[n], params) if n in DEFAULT else taus[n] for n in names]
    return float(-experts * math.log10(density) / np.mean([np.abs(f).mean() for f in filtered]))


@pytest.mark.parametrize("case", FREE_CASES)
def test_free_against_whole_spectra(case: str) -> None:
    """Backbone as of fr, to the bit where models are filtered together; experts exactly the largest elements; scales as
    the formulas have them."""
    params = FREE_CASES[case]
    base, models = family()
    result = fm.merge_state_dicts("free", base, models, **params)
    backbone = {n: v for n, v in params.items() if n not in ("scope", "expert_density", "rescale")}
    alone = fm.merge_state_dicts("fr", base, models, **backbone)
    for name in base:
        error = (result.state_dict[name] - alone.state_dict[name]).abs().max()
        assert error <= (2e-6 if params.get("rescale", "released") == "released" else 0), name
    density = Fraction(repr(params.get("expert_density", 0.01)))
    weights = list(alone.stats["coefficients"].values())
    for k, (task, model) in enumerate(models.items()):
        taus = {name: (model[name] - base[name]).double().numpy() for name in base}  # ties as they are in float32
        kept = fourier.expert(taus, density, params.get("scope", "tensor"))
        expected = scale(k, taus, kept, params, weights[k])
        assert result.stats["scales"][task] == pytest.approx(expected, rel=2e-6, abs=1e-12)
        for name in base:
            delta = torch.where(torch.from_numpy(kept[name]), model[name] - base[name], 0)
            added = result.state_dict[name] + torch.tensor(result.stats["scales"][task]) * delta
            assert torch.equal(result.task(task)[name], added), f"{task} {name}"


def test_ties_go_to_the_lowest_index() -> None:
    base = {"a.weight": torch.zeros(4, 5)}
    model = {"a.weight": torch.tensor([[1.0, 0, 1, -1, 1], [0, 2, -1, 1, 1], [1] * 5, [1] * 5])}
    for scope, places in (("tensor", [0, 2, 3, 4, 6]), ("row", [0, 6, 10, 15]), ("global", [0, 2, 3, 4, 6])):
        found = fm.merge_state_dicts("free", base, {"m": model}, expert_density=0.21, scope=scope, rescale=1)
        assert found.experts["m"]["a.weight"].offsets.tolist() == places


def test_experts_are_exact_about_density() -> None:
    """⌈0.07 · 100⌉ is 7, though 0.07 · 100 is more in binary."""
    base, model = {"a.weight": torch.zeros(10, 10)}, {"a.weight": torch.randn(10, 10)}
    found = fm.merge_state_dicts("free", base, {"m": model}, expert_density=0.07)
    assert found.experts["m"]["a.weight"].values.numel() == 7


@pytest.mark.parametrize(
    ("method", "params", "said"),
    [
        ("fr", {"cutoff": -0.1}, "cutoff is -0.1; it should be greater than or equal to 0"),
        ("fr", {"cutoff": "nan"}, "cutoff is 'nan'"),
        ("fr", {"bins": 1.5}, "bins is 1.5"),
        ("fr", {"bins": 0.1, "cutoff": 0.1}, "give one of them"),
        ("fr", {"ratio": 0.5}, "ratio belongs to convention='released'"),
        ("fr", {"preset": "released-vision", "cutoff": 0.2}, "cutoff belongs to convention='paper'"),
        ("fr", {"preset": "released"}, "preset is 'released'; it should be 'released-vision' or 'released-llm'"),
        ("fr", {"targets": "*.atn.*"}, "matches no tensor that is merged"),
        ("fr", {"exclude": ["*"]}, "there is no tensor to filter"),
        ("fr", {"coefficients": [1, 2]}, r"2 coefficients for 3 models \(m0, m1, m2\)"),
        ("fr", {"coefficients": {"m0": 1, "m1": 1, "mx": 1}}, "coefficients are for m0, m1, mx"),
        ("fr", {"coefficients": "locally"}, "expected 'global', 'mean_of_means', 'tensor', 'sum', or numbers"),
        ("free", {"expert_density": 0}, "expert_density is 0; it should be greater than 0"),
        ("free", {"rescale": "relased"}, "expected 'released', 'paper', or a number"),
        ("free", {"rescale": "paper", "coefficients": "tensor"}, "needs one coefficient a model"),
        ("free", {"nonfinite": "allow"}, "nonfinite is 'allow'"),
        (
            "free",
            {"scope": "row", "expert_density": 0.001},
            "free: of rows of fewer than 1000 elements .* of any tensor",
        ),
        ("ties", {"prefilter": {"cutoff": -1}}, r"prefilter\.cutoff is -1"),
        ("ties", {"prefilter": {"cutof": 1}}, "prefilter has no parameter 'cutof'; did you mean 'cutoff'"),
        ("ties", {"prefilter": {"targets": ["nothing"]}}, "ties: prefilter: targets 'nothing' matches no tensor"),
        ("linear", {"prefilter": {}}, "linear has no parameter 'prefilter'"),
    ],
)
def test_bad_parameters(method: str, params: dict[str, Any], said: str) -> None:
    base, models = family()
    with pytest.raises(InputError, match=said) as caught:
        fm.merge_state_dicts(method, base, models, **params)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "infinity"])
def test_what_is_not_finite_is_named(value: float) -> None:
    """Of experts even where the tensor is not merged."""
    base, models = family()
    models["m1"]["layers.1.bias"][3] = value
    free = [{}, {"scope": "global"}, {"others": "base"}, {"others": "base", "rescale": 3}]
    for method, params in (("fr", {}), *(("free", own) for own in free), ("emr", {"prefilter": {}})):
        with pytest.raises(MergeError, match=r"'layers\.1\.bias'.*m1"):
            fm.merge_state_dicts(method, base, models, **params)


PREFILTERED: list[tuple[str, dict[str, Any]]] = [
    ("task_arithmetic", {"scale": 0.4}),
    ("task_arithmetic", {"modulators": True}),
    ("ties", {"density": 0.3}),
    ("ties", {"scope": "global"}),
    ("breadcrumbs", {}),
    ("breadcrumbs_ties", {}),
    ("dare_ties", {"rescale": "l1"}),
    ("della", {}),
    ("magmax", {}),
    ("tall_masks", {}),
    ("emr", {}),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("method", "params"), PREFILTERED)
def test_prefiltered_is_the_method_on_filtered_task_vectors(
    method: str, params: dict[str, Any], dtype: torch.dtype
) -> None:
    """To the bit: filtered models on a base of zeros give the vector that is added to base."""
    base, models = family(dtype)
    result = fm.merge_state_dicts(method, base, models, prefilter={"cutoff": 0.2}, **params)
    work = torch.float64 if dtype == torch.float64 else torch.float32

    def filtered(name: str, model: dict[str, Tensor]) -> Tensor:
        tau = model[name].to(work) - base[name].to(work)
        return ops.highpass(tau, cutoff=0.2) if name in DEFAULT else tau

    zeros = {name: torch.zeros_like(t, dtype=work) for name, t in base.items()}
    deltas = {task: {name: filtered(name, model) for name in base} for task, model in models.items()}
    expected = fm.merge_state_dicts(method, zeros, deltas, **params)
    assert result.stats == expected.stats
    for name in base:
        assert torch.equal(result.state_dict[name], (base[name].to(work) + expected.state_dict[name]).to(dtype)), name
