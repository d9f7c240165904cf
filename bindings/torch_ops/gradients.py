"""Gradients of merges that are linear in their weights, for callers who learn these.

y = (base) + scale · G(Σ_k w_k · f_k · τ_k / W), G a filter or the identity, W the sum of the weights or 1. The weights'
gradient is of inner products ⟨G(g), τ_k⟩ = ⟨G(g), θ_k⟩ − ⟨G(g), θ_pre⟩, summed in float64 in one reading of the models.
Nothing is kept for it but the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import ops
from ...errors import InputError
from .filtering import highpass, highpass_merge
from .merging import combine, delta_sum
from .summing import inner_products

CUTOFF = ("cutoff", "bins", "convention", "ratio")


class Linear(NamedTuple):
    """What the gradient needs to know beside the inputs. `cutoff`: of the filter, if there is one."""

    scale: float = 1.0
    factors: Sequence[float] | None = None
    normalize: bool = False
    as_delta: bool = False
    cutoff: Mapping[str, Any] | None = None


def remember(ctx: Any, inputs: tuple[Any, ...], linear: Linear) -> None:
    base, models, weights = inputs
    ctx.linear = linear
    ctx.save_for_backward(base, weights, *models)


def gradients(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Any, ...]:
    """Those of base, models and weights, as far as they are wanted."""
    base, weights, *models = ctx.saved_tensors
    of_base, of_models, of_weights = (*ctx.needs_input_grad, False)[:3]
    linear: Linear = ctx.linear
    filtered = g if linear.cutoff is None else highpass(g, **linear.cutoff)
    w = torch.ones(len(models), dtype=torch.float64) if weights is None else weights.to(torch.float64)
    factors = linear.scale * w.new_tensor(linear.factors or [1.0] * len(models))
    total = w.sum() if linear.normalize else 1.0
    shares = (w * factors / total).to(g.device)
    of: list[Tensor | None] = [
        (share * filtered).to(m.dtype) if need else None
        for share, m, need in zip(shares, models, of_models, strict=True)
    ]
    base_gradient = (g * (not linear.as_delta) - shares.sum() * filtered).to(base.dtype) if of_base else None
    slopes = _of_weights(filtered, base, models, w, factors, total, linear).to(weights.dtype) if of_weights else None
    # torch asks for one a given argument, and trailing ones may have been left to their defaults.
    return (base_gradient, of, slopes, None, None, None)[: len(ctx.needs_input_grad)]


def _of_weights(
    g: Tensor,
    base: Tensor | None,
    models: list[Tensor],
    w: Tensor,
    factors: Tensor,
    total: Tensor | float,
    linear: Linear,
) -> Tensor:
    tensors = models if base is None else [*models, base]
    parts = [tensors[i : i + ops.MAX_MODELS] for i in range(0, len(tensors), ops.MAX_MODELS)]
    dots = torch.cat([inner_products(g, part)[0] for part in parts]).to(w.device)
    slopes = factors * (dots if base is None else dots[:-1] - dots[-1]) / total
    return slopes - (w * slopes).sum() / total if linear.normalize else slopes


def _combine_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    options = keyword_only_inputs
    selected = *inputs[3:], options["drop_keys"]
    ctx.plain = options["consensus"] == "sum" and all(part is None for part in selected)
    remember(ctx, inputs[:3], Linear(*(options[name] for name in ("scale", "factors", "normalize", "as_delta"))))


def _combine_gradients(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    if not ctx.plain:
        raise InputError(
            "combine: only consensus 'sum' of whole task vectors has gradients, neither votes nor selections have; "
            "merge with those under torch.no_grad()"
        )
    return gradients(ctx, *grads)


def _delta_sum_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    remember(ctx, inputs, Linear(as_delta=True))


def _highpass_merge_context(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any
) -> None:
    options = keyword_only_inputs
    cutoff = {name: options[name] for name in CUTOFF}
    remember(ctx, inputs, Linear(scale=options["scale"], as_delta=options["as_delta"], cutoff=cutoff))


def _highpass_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    ctx.limits, ctx.dtype = keyword_only_inputs, inputs[0].dtype


def _highpass_gradient(ctx: Any, g: Tensor) -> Tensor:
    """G is symmetric: real, of a mask that is even."""
    return highpass(g, **ctx.limits).to(ctx.dtype)  # type: ignore[no-any-return]


combine.register_autograd(_combine_gradients, setup_context=_combine_context)
delta_sum.register_autograd(gradients, setup_context=_delta_sum_context)
highpass_merge.register_autograd(gradients, setup_context=_highpass_merge_context)
highpass.register_autograd(_highpass_gradient, setup_context=_highpass_context)
