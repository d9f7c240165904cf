"""The loss that is minimised, and its gradient: a weighted mean over tasks of the mean over a task's batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, MergeError, nearest

LossFn = Callable[[nn.Module, Any], Tensor]  # the mean loss of a batch, 0-d
Batches = Iterable[Any]  # gone through anew for every gradient and every value
ALL = "all"  # the task where batches are of one


@dataclass(frozen=True, slots=True)
class Part:
    """A task's share in the objective."""

    name: str
    weight: float
    loss_fn: LossFn
    batches: Batches


def need_gradients() -> None:
    """InputError where torch computes none, whatever is asked of it."""
    if torch.is_inference_mode_enabled():
        raise InputError("there are no gradients in torch.inference_mode(); call this outside of it")


def need_gradient(loss: Tensor) -> None:
    """InputError for a loss that no parameter has a part in."""
    if not loss.requires_grad:
        raise InputError(
            "loss_fn: what it returns has no gradient; compute it of the model's parameters, not under torch.no_grad()"
        )


class Gradient:
    """∇ℓ of parameters, float32 (float64 of float64 ones), summed batch by batch.

    A parameter's own .grad is added here, and freed, as soon as the backward pass has made it: whatever dtype it has,
    sums are not rounded to it, and no second gradient of the whole model is ever there.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        need_gradients()
        self.of = {
            name: torch.zeros(
                p.numel(), dtype=torch.promote_types(p.dtype, torch.float32), device=p.device, requires_grad=False
            )
            for name, p in parameters.items()
        }
        self._parameters = parameters
        self._share = 1.0

    @contextmanager
    def watching(self) -> Iterator[Gradient]:
        """Within, backward passes add to the gradient, of frozen parameters too."""
        frozen = [p for p in self._parameters.values() if not p.requires_grad]
        for p in self._parameters.values():
            p.requires_grad_(True)
            p.grad = None
        pairs = [(own, self._parameters[name]) for name, own in self.of.items()]
        hooks = [p.register_post_accumulate_grad_hook(self._adder(own)) for own, p in pairs]  # type: ignore[no-untyped-call]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()
            for p in frozen:
                p.requires_grad_(False)

    def zero(self) -> None:
        """Begin anew."""
        for own in self.of.values():
            own.zero_()

    def add(self, weight: float, loss: Tensor, batches: int) -> None:
        """Add weight / batches · ∇loss."""
        self._share = weight / batches
        need_gradient(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def _adder(self, own: Tensor) -> Callable[[Tensor], None]:
        def add(parameter: Tensor) -> None:
            assert parameter.grad is not None
            own.add_(parameter.grad.reshape(-1), alpha=self._share)
            parameter.grad = None

        return add


class Objective:
    """ℓ(θ) = Σ_task weight · mean over batches of loss_fn(model, batch)."""

    def __init__(
        self,
        loss_fn: LossFn | Mapping[str, LossFn],
        batches: Batches | Mapping[str, Batches],
        task_weights: Mapping[str, float] | None = None,
    ) -> None:
        """One task, or mappings by task. Weights are equal by default, and divided by their sum."""
        tasks: Mapping[str, Batches] = batches if isinstance(batches, Mapping) else {ALL: batches}
        weights = dict.fromkeys(tasks, 1.0) | {name: float(w) for name, w in (task_weights or {}).items()}
        problems = _problems(loss_fn, tasks, weights)
        if problems:
            raise InputError(problems)
        total = sum(weights.values())
        of = loss_fn if isinstance(loss_fn, Mapping) else dict.fromkeys(tasks, loss_fn)
        self.parts = [Part(name, weights[name] / total, of[name], own) for name, own in tasks.items()]

    def on(self, batches: Mapping[str, Batches]) -> Objective:
        """The same on other batches, by task."""
        other = copy(self)
        other.parts = [replace(part, batches=batches[part.name]) for part in self.parts]
        return other

    def losses(self, model: nn.Module) -> dict[str, float]:
        """Each task's loss, without a gradient; not checked."""
        with torch.no_grad():
            return {part.name: self._run(model, part, lambda *_: None) for part in self.parts}

    def value(self, losses: Mapping[str, float]) -> float:
        """ℓ, of each task's loss."""
        return sum(part.weight * losses[part.name] for part in self.parts)

    def gradient(self, model: nn.Module, gradient: Gradient, part: Part | None = None) -> dict[str, float]:
        """Make `gradient` that of ℓ, or of one task's loss without its weight; the losses."""
        gradient.zero()
        found = {}
        with torch.enable_grad():
            for own in self.parts if part is None else [part]:
                use = partial(gradient.add, own.weight if part is None else 1.0)
                found[own.name] = self._run(model, own, use)
        return found

    def _run(self, model: nn.Module, part: Part, use: Callable[[Tensor, int], None]) -> float:
        """The mean loss of a task's batches, each handed on with their number."""
        batches = part.batches if isinstance(part.batches, Sized) else list(part.batches)
        if not len(batches):
            raise InputError(f"batches of {part.name}: are empty; pass one batch at least")
        total = 0.0
        for batch in batches:
            loss = part.loss_fn(model, batch)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise InputError(f"loss_fn: must return a tensor with one number, for {part.name} it returned {loss!r}")
            use(loss, len(batches))
            total += float(loss.detach())
        return total / len(batches)


def check_finite(losses: Mapping[str, float], when: str) -> None:
    """MergeError that names every task whose loss is no number."""
    bad = [f"{name} ({loss})" for name, loss in losses.items() if not math.isfinite(loss)]
    if bad:
        raise MergeError(
            f"the loss is not finite {when}: {', '.join(bad)}; look at the loss function and its batches there, and "
            "at the initial solution"
        )


def check_batches(tasks: Mapping[str, Batches]) -> list[str]:
    """What is wrong with batches, by task."""
    problems = []
    for name, own in tasks.items():
        if isinstance(own, Iterator):
            problems.append(f"batches of {name}: are an iterator, which can be gone through once; pass a list")
        elif isinstance(own, Sized) and not len(own):
            problems.append(f"batches of {name}: are empty; pass one batch at least")
    return problems


def _problems(
    loss_fn: LossFn | Mapping[str, LossFn], tasks: Mapping[str, Batches], weights: Mapping[str, float]
) -> list[str]:
    problems = [
        f"task_weights: there is no task {name!r}{nearest(name, tasks)}; there are {', '.join(tasks)}"
        for name in weights
        if name not in tasks
    ]
    if not all(math.isfinite(w) and w >= 0 for w in weights.values()) or not sum(weights.values()) > 0:
        problems.append(f"task_weights: must be finite, not negative and not all 0, they are {dict(weights)}")
    if not tasks:
        problems.append("batches: there is no task; pass batches, or a mapping of tasks to batches")
    problems += check_batches(tasks)
    if isinstance(loss_fn, Mapping):
        problems += [f"loss_fn: has none for the task {name!r}" for name in tasks if name not in loss_fn]
    return problems
