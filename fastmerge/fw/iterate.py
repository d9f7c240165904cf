"""θ_t: the model as convex coefficients make it of the candidates, and one step of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from .. import __version__
from ..errors import InputError
from . import choice
from .candidates import Candidates, check_combined, rewrite
from .line_search import line_search
from .matching import rows_of
from .objective import Gradient, Objective, check_finite
from .record import Record, Step, TensorRecord
from .settings import Settings
from .soft import blend, descend, slopes

MergeFn = Callable[[Tensor, list[Tensor], list[float]], Tensor]
Ended = Literal["gap", "stalled"] | None


class Iterate:
    """`coefficients`: float64 [R, K], a row for each layer, or one for the whole model; K candidates, θ_0 first."""

    def __init__(
        self,
        model: nn.Module,
        candidates: Candidates,
        objective: Objective,
        settings: Settings,
        merge_fn: MergeFn | None = None,
    ) -> None:
        self.model, self.candidates, self.objective, self.settings = model, candidates, objective, settings
        self.merge_fn = merge_fn
        state = model.state_dict(keep_vars=True)
        self.tensors: dict[str, Tensor] = {name: state[name] for name in candidates.slots}
        self.row_names, self.rows = rows_of(list(self.tensors), settings.layers if settings.by_layer else None)
        self.gradient = Gradient({n: t for n, t in self.tensors.items() if isinstance(t, nn.Parameter)})
        self.coefficients = torch.zeros((len(self.row_names), len(candidates.names)), dtype=torch.float64)
        self.coefficients[:, 0] = 1
        self.allowed = range(0 if settings.initial_vertex else 1, len(candidates.names))
        self._written: Tensor | None = None  # the coefficients that the model's weights are of
        self._before: dict[str, Tensor] = {}  # tensors that merge_fn was let change, as they were before its step
        self._seconds: dict[str, float] = {}

    def record(self) -> Record:
        """What there is to say before the first step."""
        slots = self.candidates.slots.items()
        return Record(
            fastmerge=__version__,
            settings=self.settings.to_dict(),
            candidates=self.candidates.names,
            identities=self.candidates.identities,
            rows=self.row_names,
            tensors={
                name: TensorRecord(row=row, dtype=slot.dtype, shape=list(slot.shape), names=list(slot.names))  # type: ignore[arg-type]
                for row, (name, slot) in zip(self.rows, slots, strict=True)
            },
            tasks={part.name: part.weight for part in self.objective.parts},
            coefficients=self.listed(),
            notes=self.candidates.notes,
        )

    def listed(self) -> list[list[float]] | None:
        """The coefficients as JSON."""
        rows: list[list[float]] = self.coefficients.tolist()
        return rows if self.merge_fn is None else None

    def begin(self, record: Record) -> None:
        """Become what a record says."""
        if record.coefficients is not None:
            self.coefficients = torch.tensor(record.coefficients, dtype=torch.float64)
        self.write(self.coefficients)

    def go_back(self) -> None:
        """Become the last iterate again."""
        for name, kept in self._before.items():
            self.tensors[name].detach().view(-1).copy_(kept)
        self.write(self.coefficients)

    def write(self, coefficients: Tensor) -> None:
        """Give the model the weights that coefficients make; rows that it has already are left alone."""
        before, self._written = self._written, None
        weights = {
            name: coefficients[row].tolist()
            for row, name in zip(self.rows, self.tensors, strict=True)
            if before is None or not torch.equal(before[row], coefficients[row])
        }
        changed = {name: self.tensors[name] for name in weights}
        rewrite(self.candidates, changed, lambda n, out, bad: self.candidates.combining(n, weights[n], out, bad))
        self._written = coefficients.clone()

    def step(self, number: int) -> tuple[Step, float | None, Ended]:
        """Take a step; what it was, the loss after it where that is known, and whether it was the last."""
        self._seconds = {}
        losses, dots, alignments = self._look(number)
        loss = self.objective.value(losses)
        gap = choice.gap(dots, self.coefficients, self.allowed) if self.merge_fn is None else None
        found = Step(number=number, loss=loss, losses=losses, gap=gap)
        if gap is not None and gap <= self.settings.tolerance:
            found.seconds = self._seconds
            return found, loss, "gap"
        vertices = self._vertices(alignments)
        with self._timed("update"):
            weights, moved, value = self._move(number, loss, dots, vertices)
            stalled = value is not None and torch.equal(moved, self.coefficients)
            self.write(moved)
        self.coefficients = moved
        shown = vertices if self.settings.lmo == "layer" else vertices[:1]
        found.vertices = [[self.candidates.names[k] for k in row] for row in shown.tolist()]
        found.weights = weights.tolist()
        found.seconds = self._seconds
        return found, value, "stalled" if stalled else None

    def _look(self, number: int) -> tuple[dict[str, float], Tensor, list[Tensor]]:
        """Losses at θ_t, ⟨g, θ_k⟩ by row, and the alignment by row: of ℓ, or of each task's loss."""
        by_task = self.settings.per_task_top_k is not None
        losses: dict[str, float] = {}
        dots, alignments = torch.zeros_like(self.coefficients), []
        every = dict.fromkeys(self.tensors, range(len(self.candidates.names)))
        for part in self.objective.parts if by_task else [None]:
            with self._timed("gradient"):
                losses |= self.objective.gradient(self.model, self.gradient, part)
            check_finite(losses, f"at step {number}")
            with self._timed("scores"):
                scores = self.candidates.scores(self.gradient.of, every)
            self.candidates.check(scores, f"at step {number}")
            dots += (1.0 if part is None else part.weight) * choice.by_row(scores.dots, self.rows)
            alignments.append(choice.by_row(choice.aligned(scores, self.settings.alignment), self.rows))
        return losses, dots, alignments

    def _vertices(self, alignments: list[Tensor]) -> Tensor:
        """The chosen candidates, [R, k]."""
        settings = self.settings
        if settings.per_task_top_k is not None:
            return choice.best_by_task(alignments, self.allowed, settings.lmo, settings.per_task_top_k)
        count = settings.top_k if settings.variant == "soft" else 1
        return choice.best(alignments[0], self.allowed, settings.lmo, count)

    def _move(self, number: int, loss: float, dots: Tensor, vertices: Tensor) -> tuple[Tensor, Tensor, float | None]:
        """The weights of the vertices, the new coefficients, and the loss there where it is known."""
        settings = self.settings
        if settings.step != "line_search":
            gamma = 2 / (number + 2) if isinstance(settings.step, str) else float(settings.step)
            if self.merge_fn is not None:
                self._merge(self.merge_fn, vertices, gamma)
                return _single(gamma), self.coefficients, None  # whose place it takes
            weights, value = _single(gamma), None
        elif settings.variant == "hard" and (settings.coefficients == "task" or len(self.coefficients) == 1):
            slope = float(slopes(dots, self.coefficients, vertices, True))
            gamma, value = line_search(lambda step: self._try(vertices, _single(step)), loss, slope)
            weights = _single(gamma)
        else:
            weights, value = self._descend(loss, dots, vertices)
        return weights, self._blended(vertices, weights), value

    def _blended(self, vertices: Tensor, weights: Tensor) -> Tensor:
        if not weights.any():
            return self.coefficients
        return blend(self.coefficients, vertices, weights.expand(vertices.shape))

    def _try(self, vertices: Tensor, weights: Tensor) -> float:
        """The loss for some weights of the vertices."""
        self.write(self._blended(vertices, weights))
        return self.objective.value(self.objective.losses(self.model))

    def _descend(self, loss: float, dots: Tensor, vertices: Tensor) -> tuple[Tensor, float]:
        """The inner problem of soft steps, and of step sizes by layer."""
        settings, (rows, count) = self.settings, vertices.shape
        shared = settings.coefficients == "task"

        def value(weights: Tensor) -> float:
            self.write(self._blended(vertices, weights))
            found = self.objective.value(self.objective.gradient(self.model, self.gradient))
            return found if math.isfinite(found) else math.inf

        def slope() -> Tensor:
            scores = self.candidates.scores(self.gradient.of, self._involved(vertices))
            return slopes(choice.by_row(scores.dots, self.rows), self.coefficients, vertices, shared)

        lam = torch.zeros((1 if shared else rows, count), dtype=torch.float64)
        start = lam, loss, slopes(dots, self.coefficients, vertices, shared)
        simplex = settings.simplex if settings.variant == "soft" else "anchored"
        if simplex == "paper":
            lam = lam + 1 / count
            start = lam, value(lam), slope()
        return descend(value, slope, start, simplex, settings.inner_steps)

    def _involved(self, vertices: Tensor) -> dict[str, Sequence[int]]:
        """By tensor, the candidates that θ_t and the vertices are of."""
        part = (self.coefficients != 0).scatter(1, vertices, torch.tensor(True).expand(vertices.shape))
        by_row = [row.nonzero().flatten().tolist() for row in part]
        return {name: by_row[row] for row, name in zip(self.rows, self.tensors, strict=True)}

    def _merge(self, merge_fn: MergeFn, vertices: Tensor, gamma: float) -> None:
        """Let the caller's function make every tensor.

        Meanwhile those before are kept where the gradient was, which is done with, and no narrower than they are.
        """
        bad = []
        with torch.no_grad():
            for row, (name, tensor) in zip(self.rows, self.tensors.items(), strict=True):
                flat, room = tensor.detach().view(-1), self.gradient.of.get(name)
                self._before[name] = flat.clone() if room is None else room.copy_(flat)
                own = [self.candidates.whole(name, k).to(tensor.device) for k in vertices[row].tolist()]
                made = merge_fn(tensor.detach(), own, [gamma] * len(own))
                if not isinstance(made, Tensor) or made.shape != tensor.shape:
                    what = list(made.shape) if isinstance(made, Tensor) else f"a {type(made).__name__}"
                    raise InputError(f"merge_fn: must return a tensor {list(tensor.shape)} for {name!r}, not {what}")
                tensor.copy_(made)
                if not tensor.isfinite().all():
                    bad.append(name)
        torch.clear_autocast_cache()
        self.candidates.files.check_unchanged()
        check_combined(bad, "merge_fn")
        self._before.clear()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - begin


def _single(step: float) -> Tensor:
    return torch.full((1, 1), step, dtype=torch.float64)
