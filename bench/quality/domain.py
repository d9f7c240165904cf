"""What a domain is: tasks with their data, a model for each, and how outputs are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastmerge.runtime import Router

IGNORED = -100  # a target that does not count
Data = tuple[Tensor, ...]  # a model's inputs and then its targets, a row a sample


@dataclass(frozen=True)
class Size:
    """How much is done: the factor of all training steps, the number of tasks at most, and samples of each test."""

    effort: float = 1.0
    tasks: int = 8
    test: int = 2000

    def steps(self, full: int) -> int:
        return max(1, round(self.effort * full))


@dataclass(frozen=True)
class Task:
    """Data to train and to test on; `outputs` is the size of the head."""

    train: Data
    test: Data
    outputs: int = 0


@dataclass(frozen=True)
class Training:
    """Steps, the largest learning rate, and that of heads, which are new and learn faster than what is fine-tuned."""

    steps: int
    rate: float
    head_rate: float = 5e-3


class Domain(ABC):
    """Tasks that one base model is fine-tuned for. Models have `hidden`, the last hidden states [n, length, width]."""

    name: ClassVar[str]
    metric: ClassVar[str]
    more_is_better: ClassVar[bool] = True
    heads: ClassVar[tuple[str, ...]] = ()  # patterns of tensors that a task has for itself
    adapters: ClassVar[tuple[str, ...]] = ()  # of those that fine-tuning changes, if not all
    inner: ClassVar[tuple[str, ...]]  # of those of attention and of inner layers
    filtering: ClassVar[dict[str, bool]] = {}  # what FR's filter must be told of the tensors
    pretraining: ClassVar[Training]
    finetuning: ClassVar[Training]
    batch: ClassVar[int] = 64

    def __init__(self, size: Size) -> None:
        self.size = size
        every = self.specific()
        self.corpus = self.general(every)
        self.tasks = dict(list(every.items())[: size.tasks])

    @abstractmethod
    def specific(self) -> dict[str, Task]:
        """What the base model is fine-tuned for."""

    def general(self, tasks: Mapping[str, Task]) -> Task:
        """What the base model learns: if nothing else, all of this together."""
        train = tuple(torch.cat(parts) for parts in zip(*(task.train for task in tasks.values()), strict=True))
        return Task(train, train)

    @abstractmethod
    def model(self, task: str | None) -> nn.Module:
        """A new model with a task's head, or for what the base model learns."""

    def is_head(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.heads)

    def is_adapter(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.adapters)

    def merges(self, name: str) -> bool:
        """Whether the tasks share a tensor of this name, and each has changed it."""
        return self.is_adapter(name) if self.adapters else not self.is_head(name)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What training minimises: cross-entropy. outputs: [..., classes], targets: [...]"""
        return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=IGNORED)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Per sample what the metric is the mean of: 100 where every target is the likeliest output, else 0."""
        right = (outputs.argmax(-1) == targets) | (targets == IGNORED)
        return 100 * right.flatten(1).all(1).float() if right.ndim > 1 else 100 * right.float()


State = dict[str, Tensor]


@dataclass
class Family:
    """A trained base, its fine-tunes, and one model trained on all tasks at once; and how to test a model.

    A model is a state dict with what the tasks share (`domain.merges`) and a task's head; `frozen` is what all models
    have in common beside that.
    """

    domain: Domain
    base: State
    models: dict[str, State]
    multitask: dict[str, State]
    frozen: State

    def head(self, task: str) -> State:
        return {name: tensor for name, tensor in self.models[task].items() if name not in self.base}

    def live(self, task: str, state: State) -> nn.Module:
        model = self.domain.model(task)
        model.load_state_dict(self.frozen | state)
        return model.eval()

    @torch.inference_mode()
    def scores(self, task: str, state: State, rows: Tensor | None = None) -> Tensor:
        """The score of every test sample, or of those at `rows`, float32 [n]."""
        model = self.live(task, state)
        data = self.domain.tasks[task].test
        parts = zip(*((t if rows is None else t[rows]).split(250) for t in data), strict=True)
        return torch.cat([self.domain.score(model(*inputs), targets) for *inputs, targets in parts])

    @torch.inference_mode()
    def features(self, task: str, state: State, part: str, count: int | None = None) -> Tensor:
        """Mean-pooled last hidden states of a task's inputs, [n, width]. part: "train" or "test"."""
        model = self.live(task, state)
        *inputs, _ = getattr(self.domain.tasks[task], part)
        batches = zip(*(t[:count].split(250) for t in inputs), strict=True)
        return torch.cat([model.hidden(*batch).mean(1) for batch in batches])

    def router(self, backbone: State, tasks: list[str], samples: int) -> Router:
        """A router trained on a few samples of each task, as the backbone sees them."""
        features = [self.features(task, backbone | self.head(task), "train", samples) for task in tasks]
        labels = [task for task, own in zip(tasks, features, strict=True) for _ in own]
        return Router.fit(torch.cat(features), labels, tasks)
