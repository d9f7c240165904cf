"""What is merged, by whom, and with how much data: as Appendix B.4 of the paper has it, in miniature.

Coefficients are found by the entropy of predictions for unlabelled test samples, by AdaMerging and by FW-Merging alike.
AdaMerging takes 300 steps where irrelevant models join and 200 where relevant ones do, of 16 samples of each task;
FW-Merging as many gradients at most, of 32 (16 of twenty tasks) of each that stay the same. All else has one setting,
its default or its paper's: soft FW chooses three models at a time and gives coefficients to layers, hard FW chooses for
each layer, and starts, as the paper's on images, from AdaMerging's result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

import fastmerge as fm

from ..domain import Family, State

PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "task arithmetic": ("task_arithmetic", {"scale": 0.3}),
    "TIES": ("ties", {"preset": "paper"}),
    "DARE": ("dare_linear", {"scale": 0.3}),
}
SEARCHING = ("AdaMerging", "FW hard", "FW soft")
METHODS = (*PLAIN, *SEARCHING)
SAMPLES = 16  # of each task, in a step of AdaMerging
INNER, HARD_STEPS = 20, 3
HEADS = ["classifier.*"]


@dataclass
class Case:
    """A pool of models without heads, and the tasks that the merged model is for; `gradients`: how many are found, FW's
    of so many `samples` of each task."""

    family: Family
    pool: dict[str, State]
    evaluated: list[str]
    seed: int
    gradients: int
    samples: int

    def merged(self, method: str) -> State:
        """The merged weights of all but heads."""
        if method in PLAIN:
            name, parameters = PLAIN[method]
            return fm.merge_state_dicts(name, self.family.base, self.pool, **parameters).state_dict
        if method == "AdaMerging":
            return self.adaptive
        if method == "FW hard":
            return self._frank_wolfe(variant="hard", lmo="layer", steps=HARD_STEPS, init=self.adaptive)
        steps = max(1, self.gradients // INNER)
        return self._frank_wolfe(variant="soft", coefficients="layer", steps=steps, inner_steps=INNER)

    def scores(self, weights: State) -> dict[str, float]:
        """Accuracies in % on the evaluated tasks."""
        own = {task: weights | self.family.head(task) for task in self.evaluated}
        return {task: self.family.scores(task, state).mean().item() for task, state in own.items()}

    @cached_property
    def adaptive(self) -> State:
        """What AdaMerging makes, layer by layer."""
        model = self._model()
        batches = self._batches(SAMPLES)
        fm.ada_merging(model, self.pool, batches, self._entropy, steps=self.gradients, task_specific=HEADS)
        return self._weights(model)

    def _frank_wolfe(self, init: State | str = "base", **options: Any) -> State:
        model = self._model()
        batches = self._batches(self.samples)[:1]
        fm.frank_wolfe(model, self.pool, self._entropy, batches, init=init, task_specific=HEADS, **options)
        return self._weights(model)

    def _model(self) -> nn.Module:
        model = self.family.domain.model(None)
        model.load_state_dict(self.family.base, strict=False)
        return model.eval()

    def _weights(self, model: nn.Module) -> State:
        return {name: t.detach().clone() for name, t in model.state_dict().items() if name in self.family.base}

    def _batches(self, samples: int) -> Sequence[Tensor]:
        """Test inputs in an order of their own, so many of each task, task after task."""
        generator = torch.Generator().manual_seed(self.seed)
        inputs = [self.family.domain.tasks[task].test[0] for task in self.evaluated]
        mixed = torch.stack([own[torch.randperm(len(own), generator=generator)] for own in inputs])
        return [part.flatten(0, 1) for part in mixed.split(samples, 1) if part.shape[1] == samples]

    def _entropy(self, model: nn.Module, images: Tensor) -> Tensor:
        """The mean entropy over the evaluated tasks, each by its own head."""
        features = model.hidden(images).mean(1).chunk(len(self.evaluated))  # type: ignore[operator]
        parts = []
        for task, own in zip(self.evaluated, features, strict=True):
            head = self.family.head(task)
            logs = nn.functional.linear(own, head["classifier.weight"], head["classifier.bias"]).log_softmax(-1)
            parts.append(-(logs.exp() * logs).sum(-1).mean())
        return torch.stack(parts).mean()
