"""LoRA adapters of a live PeftModel, merged into a new one by any method that gives one model.

PEFT's own `add_weighted_adapter` has a combination type for each pair of a method and a place where it works. Here the
two are apart: `method` is any of fastmerge's, `how` says what it is given.

| how | what is merged | rank of the result | PEFT's combination types |
|---|---|---|---|
| "svd" | task vectors: each adapter's scale · B · A, over a base of zeros | `rank`, the largest adapter's by default; the nearest product of that rank | svd, ties_svd, dare_linear_svd, dare_ties_svd |
| "cat" | nothing is lost: Σ w_k · scale_k · B_k · A_k is the product of all B side by side and all A on top of each other | the sum of ranks | cat |
| "factors" | all A, and all B, each by the root of its adapter's scale, with the root of its weight: cheap, but the product of sums is no sum of products | the adapters', which must be equal | linear, ties, dare_linear, dare_ties |
"""  # noqa: E501

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .. import ops
from ..engine.factor import factor
from ..engine.state_dicts import merge_state_dicts
from ..errors import InputError, nearest
from ..formats.adapter import refusals
from ..methods import get
from ..methods._declaration import of_models
from ..recipe.parameters import declare

How = Literal["svd", "cat", "factors"]
SUMS = ("task_arithmetic", "linear")  # methods whose result is a weighted sum
Weights = float | Sequence[float] | Mapping[str, float]


@dataclass(slots=True)
class _Factors:
    """An adapter's part in a module: scale · up · down, [out, r] and [r, in]."""

    up: Tensor
    down: Tensor
    scale: float

    @property
    def product(self) -> Tensor:
        wide = ops.working_dtype([self.up, self.down])
        zeros = self.up.new_zeros(self.up.shape[0], self.down.shape[1], dtype=wide)
        return ops.low_rank(zeros, self.up, self.down, self.scale)


def add_merged_adapter(
    model: Any,
    adapters: Sequence[str],
    name: str,
    method: str = "ties",
    *,
    weights: Weights | None = None,
    how: How = "svd",
    rank: int | None = None,
    seed: int = 0,
    **params: Any,
) -> dict[str, float]:
    """Merge LoRA adapters of a PeftModel into a new one, `name`, which `model.set_adapter(name)` then makes active.

    weights: one number an adapter, in order or by name, all ones by default. how: what is merged (see above). rank: of
    the result, with how="svd". seed: of the randomised decomposition of large matrices, and of methods that draw.
    params: the method's. An adapter that has no part in a module counts as zeros there.

    Returns by module which part of the merged task vector's energy, Σ τ², the new adapter keeps; nothing of "factors".
    Raises InputError with every problem found, and then leaves the model as it was.
    """
    adapters = list(adapters)
    problems = _problems(model, adapters, name, method, how, rank)
    if problems:
        raise InputError(problems)
    if "seed" in get(method).model_fields:
        params["seed"] = seed
    given = params if weights is None else params | {"weights": weights}
    declared = declare(method, given, {}, (), adapters).method
    problems = declared.problems(adapters)
    modules = _modules(model, adapters)
    own_weights = of_models(getattr(declared, "weights", None) or 1.0, adapters)
    if how == "factors":
        problems += _factor_problems(modules, declared, own_weights)
    if not modules:
        problems.append(f"the adapters {', '.join(adapters)} have no part in any module")
    if problems:
        raise InputError(problems)
    merged, kept = {
        "cat": lambda: _concatenated(modules, _shares(own_weights, declared), adapters),
        "factors": lambda: _by_factors(modules, own_weights, adapters, method, declared, params),
        "svd": lambda: _by_products(modules, adapters, method, given, rank, seed),
    }[how]()
    _add(model, name, adapters[0], merged)
    return kept


def _problems(model: Any, adapters: list[str], name: str, method: str, how: str, rank: int | None) -> list[str]:
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict) or not hasattr(model, "add_adapter"):
        return [f"model is a {type(model).__name__}; expected a PeftModel"]
    problems = [f"there is no adapter {a!r}{nearest(a, configs)}" for a in adapters if a not in configs]
    if not adapters:
        problems.append("there are no adapters to merge")
    problems += [f"adapter {a!r} is given twice" for a in dict.fromkeys(adapters) if adapters.count(a) > 1]
    if name in configs:
        problems.append(f"there is an adapter {name!r} already; choose another name, or delete_adapter({name!r}) first")
    for adapter in (a for a in dict.fromkeys(adapters) if a in configs):
        config = configs[adapter]
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if kind != "LORA":
            problems.append(f"adapter {adapter!r} is of type {kind}; LORA adapters can be merged")
            continue
        # What base was made to be when it began is the live model's base.
        plain = config.to_dict() | {"peft_type": kind, "init_lora_weights": True}
        problems += [f"adapter {adapter!r}: {reason}" for reason in refusals(plain)]
        if config.modules_to_save or config.bias != "none" or getattr(config, "lora_bias", False):
            problems.append(f"adapter {adapter!r} has modules_to_save or biases, which no low-rank adapter can hold")
    if how not in ("svd", "cat", "factors"):
        problems.append(f"how is {how!r}; there are 'svd', 'cat' and 'factors'")
    if how == "cat" and method not in SUMS:
        problems.append(f"how='cat' is a weighted sum ({', '.join(SUMS)}); merge by {method} with how='svd'")
    if rank is not None and (how != "svd" or rank < 1):
        problems.append("rank is a number from 1 up, of how='svd' alone")
    return problems


def _factor_problems(modules: Mapping[str, Mapping[str, _Factors]], declared: Any, weights: list[float]) -> list[str]:
    unequal = [name for name, own in modules.items() if len({part.down.shape[0] for part in own.values()}) > 1]
    problems = []
    if unequal:
        more = f" and {len(unequal) - 1} more" if len(unequal) > 1 else ""
        problems.append(
            f"module {unequal[0]!r}{more}: the adapters have different ranks; how='factors' needs equal ones, "
            "or use how='svd'"
        )
    if min(weights) < 0 and _divides(declared):
        problems.append(
            "weights: how='factors' divides A and B by the sum of the weights' roots, which a negative one has not; "
            "use how='svd'"
        )
    if not isinstance(getattr(declared, "coefficients", ""), str):
        problems.append("coefficients: numbers would multiply A and B, and so count twice; use how='svd'")
    return problems


def _divides(declared: Any) -> bool:
    """Whether a method divides by the sum of the weights, or of those that agree."""
    says = any(getattr(declared, name, False) for name in ("normalize", "normalize_weights"))
    return says or getattr(declared, "merge", "sum") == "weighted_mean" or declared.name == "nuslerp"


def _modules(model: Any, adapters: Sequence[str]) -> dict[str, dict[str, _Factors]]:
    """By module, the adapters that have a part in it."""
    found: dict[str, dict[str, _Factors]] = {}
    for module, layer in _layers(model).items():
        for adapter in adapters:
            pair = _pair(layer, adapter)
            if pair is not None:
                down, up = (t.detach().reshape(t.shape[0], -1) for t in pair)
                found.setdefault(module, {})[adapter] = _Factors(up, down, float(layer.scaling[adapter]))
    return found


def _layers(model: Any) -> dict[str, Any]:
    """The model's modules that have LoRA matrices, by the names that they have in the base model."""
    inner = model.get_base_model()
    return {
        name: layer for name, layer in inner.named_modules() if hasattr(layer, "lora_A") and hasattr(layer, "scaling")
    }


def _pair(layer: Any, adapter: str) -> tuple[Tensor, Tensor] | None:
    """A and B of a linear or convolutional layer, or of an embedding."""
    if adapter in layer.lora_A:
        return layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    if adapter in layer.lora_embedding_A:
        return layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
    return None


Result = tuple[dict[str, tuple[Tensor, Tensor]], dict[str, float]]  # up and down by module, and the energy kept


def _concatenated(modules: Mapping[str, Mapping[str, _Factors]], weights: list[float], adapters: list[str]) -> Result:
    merged = {}
    for module, own in modules.items():
        ups = [part.up.float() for part in own.values()]
        downs = [weights[adapters.index(a)] * part.scale * part.down.float() for a, part in own.items()]
        merged[module] = torch.cat(ups, 1), torch.cat(downs)
    return merged, dict.fromkeys(merged, 1.0)


def _shares(weights: list[float], declared: Any) -> list[float]:
    """What a weighted sum multiplies each adapter by."""
    divisor = sum(weights) if declared.normalize else 1.0
    return [getattr(declared, "scale", 1.0) * weight / divisor for weight in weights]


def _by_factors(
    modules: Mapping[str, Mapping[str, _Factors]],
    weights: list[float],
    adapters: list[str],
    method: str,
    declared: Any,
    params: Mapping[str, Any],
) -> Result:
    """A and B of all modules, each with the root of scale; weights and the result's factor are roots in both, and what
    is negative of an adapter goes to A, of the result to B."""
    states: dict[str, dict[str, Tensor]] = {adapter: {} for adapter in adapters}
    for module, own in modules.items():
        for adapter, weight in zip(adapters, weights, strict=True):
            like = next(iter(own.values()))
            part = own.get(adapter) or _Factors(torch.zeros_like(like.up), torch.zeros_like(like.down), 1.0)
            root = math.sqrt(abs(part.scale))
            states[adapter][f"{module}.A"] = math.copysign(root, weight * part.scale) * part.down.float()
            states[adapter][f"{module}.B"] = root * part.up.float()
    scale, halves = getattr(declared, "scale", 1.0), dict(params)
    if "weights" in type(declared).model_fields:
        halves["weights"] = [math.sqrt(abs(weight)) for weight in weights]
    if "scale" in type(declared).model_fields:
        halves["scale"] = math.sqrt(abs(scale))
    merged = _merged(states, method, halves)
    sign = math.copysign(1.0, scale)
    return {module: (sign * merged[f"{module}.B"], merged[f"{module}.A"]) for module in modules}, {}


def _by_products(
    modules: Mapping[str, Mapping[str, _Factors]],
    adapters: list[str],
    method: str,
    params: Mapping[str, Any],
    rank: int | None,
    seed: int,
) -> Result:
    """Task vectors merged, and factored; module by module, unless the method looks at all of them first."""
    rank = rank or max(part.down.shape[0] for own in modules.values() for part in own.values())
    together = len(declare(method, params, {}, (), adapters).method.passes(adapters)) > 1
    groups = [list(modules)] if together else [[module] for module in modules]
    found, kept = {}, {}
    for group in groups:
        states: dict[str, dict[str, Tensor]] = {adapter: {} for adapter in adapters}
        for module in group:
            products = {adapter: part.product for adapter, part in modules[module].items()}
            zeros = torch.zeros_like(next(iter(products.values())))
            for adapter in adapters:
                states[adapter][f"{module}.weight"] = products.get(adapter, zeros)
        for tensor, delta in _merged(states, method, params).items():
            factored = factor(delta, rank, seed, tensor)
            module = tensor.removesuffix(".weight")
            found[module], kept[module] = (factored.up, factored.down), factored.kept
    return found, kept


def _merged(states: Mapping[str, Mapping[str, Tensor]], method: str, params: Mapping[str, Any]) -> dict[str, Tensor]:
    """Task vectors merged over a base of zeros."""
    base = {name: torch.zeros_like(tensor) for name, tensor in next(iter(states.values())).items()}
    result = merge_state_dicts(method, base, states, **params)
    if result.experts or "rescalers" in result.stats:
        raise InputError(f"{method} keeps tasks apart, and gives no one adapter; merge the adapters' folders with it")
    return result.state_dict


def _add(model: Any, name: str, like: str, merged: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """A new adapter with these matrices, padded with zeros to the largest rank."""
    from peft import LoraConfig

    first = model.peft_config[like]
    rank = max(down.shape[0] for _, down in merged.values())
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(merged),
        fan_in_fan_out=first.fan_in_fan_out,
        task_type=first.task_type,
        base_model_name_or_path=first.base_model_name_or_path,
        inference_mode=first.inference_mode,
    )
    model.add_adapter(name, config)
    layers = _layers(model)
    with torch.no_grad():
        for module, (up, down) in merged.items():
            pair = _pair(layers[module], name)
            assert pair is not None
            own = down.shape[0]
            for stored, value, axis in ((pair[0], down, 0), (pair[1], up, 1)):
                stored.zero_()
                part = stored.narrow(axis, 0, own)
                part.copy_(value.reshape(part.shape))
