"""AdaMerging: coefficients of task vectors, learned without labels (Yang et al. 2024, arXiv 2310.02575)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..errors import InputError, attempt
from ..forms import well_formed
from ..fw.candidates import Candidates, Pool, kept_whole, rewrite
from ..fw.choice import Level, by_row
from ..fw.matching import rows_of
from ..fw.objective import Batches, Gradient, LossFn, Objective, check_finite
from ..fw.objectives import entropy
from .record import AdaMergingRecord, Step
from .result import Result
from .task_vectors import ElectedTaskVectors, TaskVectors

Callback = Callable[[Step], bool | None]
BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's


@dataclass(frozen=True, slots=True)
class Settings:
    """Arguments of `ada_merging` that decide its result, beside model, pool and objective. InputError where wrong."""

    coefficients: Level = "layer"
    plus_plus: bool = False
    steps: int = 500
    rate: float = 1e-3
    initial: float = 0.3
    bounds: tuple[float, float] | None = (0.0, 1.0)
    batches_per_step: int | None = 1
    density: float = 0.2
    layers: str | Sequence[str] = "tensor"
    task_specific: Sequence[str] = ()

    def __post_init__(self) -> None:
        problems = []
        if self.coefficients not in ("task", "layer"):
            problems.append(f"coefficients: is {self.coefficients!r}; expected 'task' or 'layer'")
        for name in ("steps", "batches_per_step"):
            value = getattr(self, name)
            if not (value is None and name == "batches_per_step") and (not isinstance(value, int) or value < 1):
                problems.append(f"{name}: is {value!r}; expected a whole number, 1 at least")
        if not 0 < self.rate < math.inf:
            problems.append(f"rate: is {self.rate!r}; expected a number above 0")
        low, high = self.bounds or (-math.inf, math.inf)
        if not low < high:
            problems.append(f"bounds: are {self.bounds!r}; expected the least and the largest coefficient, or None")
        elif not (low <= self.initial <= high and math.isfinite(self.initial)):
            problems.append(f"initial: is {self.initial!r}, which is not within the bounds {self.bounds!r}")
        if not 0 < self.density <= 1:
            problems.append(f"density: is {self.density!r}; expected a fraction, above 0 and at most 1")
        if isinstance(self.layers, str) and self.layers not in ("tensor", "block"):
            problems.append(f"layers: is {self.layers!r}; expected 'tensor', 'block', or a list of patterns")
        if problems:
            raise InputError(problems)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON."""
        return asdict(self) | {
            "bounds": None if self.bounds is None else list(self.bounds),
            "layers": self.layers if isinstance(self.layers, str) else list(self.layers),
            "task_specific": list(self.task_specific),
        }


@well_formed
def ada_merging(
    model: nn.Module,
    pool: Pool,
    batches: Batches | Mapping[str, Batches],
    loss_fn: LossFn | Mapping[str, LossFn] = entropy,
    *,
    coefficients: Level = "layer",
    plus_plus: bool = False,
    steps: int = 500,
    rate: float = 1e-3,
    initial: float = 0.3,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    batches_per_step: int | None = 1,
    density: float = 0.2,
    init: str | Path | Mapping[str, Tensor] = "base",
    layers: str | Sequence[str] = "tensor",
    task_specific: Sequence[str] = (),
    task_weights: Mapping[str, float] | None = None,
    callback: Callback | None = None,
    skip_misfits: bool = False,
) -> Result:
    """Learn the coefficients of task arithmetic by gradient descent on unlabelled batches, in place.

    The merged model is θ_0 + Σ_k λ_k · τ_k with τ_k = θ_k − θ_0, one λ_k a task vector (`coefficients` "task") or one
    for each of its layers ("layer", λ_k^l). They minimise the entropy of predictions, or any other loss (Yang et al.
    2024, arXiv 2310.02575). `plus_plus`: AdaMerging++, whose τ_k are what TIES-Merging leaves of them: of each the
    fraction `density` of largest magnitudes over the whole model, and of these what has the sign of their sum.

    ∂ℓ/∂λ_k is ⟨∇ℓ, τ_k⟩, found with all others in one sweep through the pool, which may be larger than memory: beside
    the model there are its gradient (float32) and one block of the pool, whatever its size. The merged model is, to the
    bit, what `fm.merge("task_arithmetic")` makes with these λ as weights, layer by layer.

    model: a torch module, on any device; θ_0 as it is where `init` is "base" (it is then copied to a temporary file),
    else its weights are replaced by those of a state dict or checkpoint. pool, task_specific, skip_misfits: as
    `fm.frank_wolfe` takes them. batches: lists or loaders that can be gone through again, or a mapping of them by
    task; a step takes the next `batches_per_step` of each task (None: all) and begins again where they end; the
    released code takes two of 16 samples. loss_fn(model, batch): the mean loss of a batch, `fm.fw.entropy` by default,
    or a mapping by task; tasks count equally, or by `task_weights`.

    Adam (betas 0.9 and 0.999) with the learning rate `rate` takes `steps` from λ = `initial`. As in the released code,
    a λ beyond `bounds` counts as the bound, and has no gradient there; None: no bounds. `layers` are single tensors,
    "block" (by the numbers in names), or patterns; buffers are merged as their row is, and have no part in the
    gradient. The run ends earlier when `callback`, called with each step, returns True. Raises InputError with every
    problem before any work, MergeError where a loss, a gradient or a candidate is not finite. Whatever the error, the
    model is then at the last whole step, or it says that it is not, as where files of the pool have changed. Gradients
    that parameters hold are cleared.
    """
    problems: list[str] = []
    settings = attempt(
        problems,
        lambda: Settings(
            coefficients,
            plus_plus,
            steps,
            rate,
            initial,
            bounds,
            batches_per_step,
            density,
            layers,
            task_specific,
        ),
    )
    objective = attempt(problems, lambda: Objective(loss_fn, batches, task_weights))
    candidates = attempt(problems, lambda: Candidates.of(model, pool, init, task_specific, skip_misfits))
    if problems or settings is None or objective is None or candidates is None:
        raise InputError(problems)
    vectors = ElectedTaskVectors(candidates, density) if plus_plus else TaskVectors(candidates)
    return _Run(model, vectors, objective, settings).result(callback)


class _Run:
    """`raw`: float64 [R, K], a row for each layer or one for the whole model; coefficients before they are bounded."""

    def __init__(self, model: nn.Module, vectors: TaskVectors, objective: Objective, settings: Settings) -> None:
        self.model, self.vectors, self.objective, self.settings = model, vectors, objective, settings
        state = model.state_dict(keep_vars=True)
        self.tensors: dict[str, Tensor] = {name: state[name] for name in vectors.candidates.slots}
        by_layer = settings.coefficients == "layer"
        self.row_names, self.rows = rows_of(list(self.tensors), settings.layers if by_layer else None)
        self.gradient = Gradient({n: t for n, t in self.tensors.items() if isinstance(t, nn.Parameter)})
        shape = len(self.row_names), vectors.count
        self.raw = torch.full(shape, settings.initial, dtype=torch.float64)
        self.written: Tensor | None = None
        self.feeds = {part.name: _Feed(part.batches, settings.batches_per_step) for part in objective.parts}

    def result(self, callback: Callback | None) -> Result:
        adam = _Adam(self.raw, self.settings.rate)
        record = self._record()
        with kept_whole(self._go_back), self.gradient.watching():
            self._write(self._bounded())
            for number in range(self.settings.steps):
                step, slopes = self._look(number)
                adam.step(slopes)
                self._write(self._bounded())
                record.steps.append(step)
                if callback is not None and callback(step):
                    record.ended = "callback"
                    break
            losses = self.objective.losses(self.model)
            check_finite(losses, "at the end")
        record.coefficients, record.loss = self._bounded().tolist(), self.objective.value(losses)
        record.ended = record.ended or "steps"
        return Result(record, self.model, self.vectors.candidates)

    def _look(self, number: int) -> tuple[Step, Tensor]:
        """The loss on the next batches, and its slopes by the coefficients, [R, K]."""
        begin = time.perf_counter()
        own = self.objective.on({name: feed.take() for name, feed in self.feeds.items()})
        losses = own.gradient(self.model, self.gradient)
        check_finite(losses, f"at step {number}")
        found = time.perf_counter()
        dots = by_row(self.vectors.dots(self.gradient.of, f"at step {number}"), self.rows)
        seconds = {"gradient": found - begin, "scores": time.perf_counter() - found}
        slopes = torch.where(self.raw == self._bounded(), dots, 0.0)
        return Step(number=number, loss=own.value(losses), losses=losses, seconds=seconds), slopes

    def _bounded(self) -> Tensor:
        return self.raw.clone() if self.settings.bounds is None else self.raw.clamp(*self.settings.bounds)

    def _write(self, coefficients: Tensor) -> None:
        weights = dict(zip(self.tensors, (coefficients[row].tolist() for row in self.rows), strict=True))
        rewrite(
            self.vectors.candidates,
            self.tensors,
            lambda name, out, bad: self.vectors.adding(name, weights[name], out, bad),
        )
        self.written = coefficients

    def _reset(self) -> None:
        candidates = self.vectors.candidates
        alone = [1.0, *[0.0] * self.vectors.count]
        rewrite(candidates, self.tensors, lambda name, out, bad: candidates.combining(name, alone, out, bad))

    def _go_back(self) -> None:
        """Become the last whole step's, from the first θ_0's."""
        if self.written is not None:
            self._write(self.written)
        else:
            self._reset()

    def _record(self) -> AdaMergingRecord:
        candidates = self.vectors.candidates
        return AdaMergingRecord(
            fastmerge=__version__,
            settings=self.settings.to_dict(),
            candidates=candidates.names,
            identities=candidates.identities,
            rows=self.row_names,
            tasks={part.name: part.weight for part in self.objective.parts},
            coefficients=self._bounded().tolist(),
            notes=candidates.notes,
        )


class _Adam:
    """Kingma & Ba 2015, Algorithm 1, in place. torch.optim's own takes seconds to be imported."""

    def __init__(self, parameter: Tensor, rate: float) -> None:
        self._parameter, self._rate, self._steps = parameter, rate, 0
        self._mean, self._square = torch.zeros_like(parameter), torch.zeros_like(parameter)

    def step(self, gradient: Tensor) -> None:
        self._steps += 1
        self._mean.lerp_(gradient, 1 - BETAS[0])
        self._square.lerp_(gradient.square(), 1 - BETAS[1])
        mean, square = (
            own / (1 - beta**self._steps) for own, beta in zip((self._mean, self._square), BETAS, strict=True)
        )
        self._parameter -= self._rate * mean / (square.sqrt() + EPSILON)


class _Feed:
    """A task's batches, so many at a time, over and over."""

    def __init__(self, batches: Batches, count: int | None) -> None:
        self._batches, self._count = batches, count
        self._endless = _over_and_over(batches)

    def take(self) -> Batches:
        """The next batches; none where there are none at all."""
        return self._batches if self._count is None else list(islice(self._endless, self._count))


def _over_and_over(batches: Batches) -> Iterator[Any]:
    some = True
    while some:
        some = False
        for batch in batches:
            some = True
            yield batch
