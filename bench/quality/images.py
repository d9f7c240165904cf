"""Images: a small vision transformer on scikit-learn's digits and on glyphs rendered with matplotlib's fonts."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import ClassVar

from demo import data
from demo.model import VisionTransformer
from torch import nn

from .domain import Domain, Task, Training

TRAIN = 3000  # images a task
LETTERS = string.ascii_letters


class Images(Domain):
    """The demo's seven tasks of reading characters, and telling fonts apart."""

    name = "images"
    metric = "accuracy in %"
    heads = ("classifier.*",)
    inner = ("blocks.*.qkv.*", "blocks.*.proj.*", "blocks.*.fc?.*")
    pretraining = Training(1500, 3e-3)
    finetuning = Training(120, 5e-4)
    width: ClassVar[int] = 64

    def general(self, tasks: Mapping[str, Task]) -> Task:
        task = data.pretraining()
        return Task(task.train, task.test, task.classes)

    def specific(self) -> dict[str, Task]:
        own = {task.name: Task(task.train, task.test, task.classes) for task in data.tasks(TRAIN, self.size.test)}
        return own | {"fonts": self._fonts()}

    def _fonts(self) -> Task:
        originals = data.glyphs(LETTERS).flatten(0, 1)
        parts = []
        for count, seed in ((TRAIN, 70), (self.size.test, 71)):
            images, which = data.sample(originals, count, seed)
            parts.append((images, which // len(LETTERS)))
        return Task(parts[0], parts[1], len(data.FONTS))

    def model(self, task: str | None) -> nn.Module:
        return VisionTransformer(self.tasks[task].outputs if task else self.corpus.outputs, self.width)
