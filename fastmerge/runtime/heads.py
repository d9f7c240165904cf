"""Tensors that a task has for itself, such as its classification head, put into a model and out of it again."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from ..formats.contents import Contents
from ..formats.dtypes import INTEGER_DTYPES, TORCH_DTYPES
from ..formats.mapping import Inputs
from ..formats.safetensors import TensorInfo
from .matching import Matched, tensor_of

LABELS = ("id2label", "label2id", "problem_type")  # of a Hugging Face configuration: what belongs to a head


class Heads:
    """The tasks' own tensors in a model, and the labels of its configuration.

    A tensor that a task does not have is the source's (base's, or the backbone's), or the model's as it was at first.
    """

    def __init__(self, model: nn.Module, contents: Contents, matched: Matched, files: Inputs) -> None:
        self.model, self.files, self.places = model, files, matched.heads
        self.own, self.home = contents.own, contents.home
        self._check(contents)
        self.first = {
            name: tensor_of(model, places[0]).detach().clone()
            for name, places in self.places.items()
            if name not in self.home
        }
        self.config: Any = getattr(model, "config", None)
        first = self._labels(contents.source.config if self.home else None, contents.source.label)
        self.labels: dict[str | None, dict[str, Any]] = {None: first}
        for task in contents.folder.tasks:
            content = contents.folder.config(task)
            self.labels[task] = first if content is None else self._labels(content, f"task {task}")

    def __deepcopy__(self, memo: dict[int, Any]) -> Heads:
        """Those of a copy of the model."""
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model, memo)
        other.config = getattr(other.model, "config", None)
        return other

    def apply(self, task: str | None) -> None:
        """Bring the model's heads and labels to a task; None: to the model without one."""
        own = self.own[task] if task is not None else {}
        for name, places in self.places.items():
            info = own.get(name) or self.home.get(name)
            self._put(self.first[name] if info is None else self.files.whole(info), places)
        for label, value in self.labels[task].items():
            setattr(self.config, label, value)
        if self.labels[task] and hasattr(self.model, "num_labels"):
            self.model.num_labels = self.config.num_labels

    def _put(self, value: Tensor, places: tuple[str, ...]) -> None:
        """In place where the shape is the same, else by another parameter in its module."""
        present = tensor_of(self.model, places[0])
        if present.shape == value.shape:
            present.detach().copy_(value)
            return
        new = value.to(present.device, present.dtype, copy=True)
        if isinstance(present, nn.Parameter):
            new = nn.Parameter(new, present.requires_grad)
        for place in places:
            owner, _, attribute = place.rpartition(".")
            module = self.model.get_submodule(owner)
            setattr(module, attribute, new)
            _resize(module)

    def _check(self, contents: Contents) -> None:
        """Every dtype is known, and a task that has a part of a module has all that another task has of it."""
        stored = {contents.source.label: self.home} | {f"task {task}": tensors for task, tensors in self.own.items()}
        problems = [
            f"{owner}: its tensor {t.name!r} is {t.dtype}, which no torch module holds"
            for owner, tensors in stored.items()
            for t in tensors.values()
            if t.dtype not in TORCH_DTYPES and t.dtype not in INTEGER_DTYPES
        ]
        every: dict[str, TensorInfo] = {name: info for tensors in self.own.values() for name, info in tensors.items()}
        for task, tensors in self.own.items():
            modules = {name.rpartition(".")[0] for name in tensors}
            lacking = [n for n in every if n.rpartition(".")[0] in modules and n not in tensors and n not in self.home]
            problems += [f"task {task} has no tensor {name!r} of its own, which another task has" for name in lacking]
        if problems:
            raise InputError(f"{contents.folder.path}: {problem}" for problem in problems)

    def _labels(self, content: dict[str, Any] | None, owner: str) -> dict[str, Any]:
        """The labels of a config.json, of the model's own without one; none where the model is not Hugging Face's."""
        config = self.config
        if not all(hasattr(config, key) for key in LABELS):
            return {}
        try:
            if content:
                config = type(config).from_dict(content)
            return {key: getattr(config, key) for key in LABELS}
        except Exception as error:  # whatever the configuration's class makes of a stranger's file
            raise InputError(f"{owner}: its config.json cannot be read: {error}") from None


def _resize(module: Any) -> None:
    """Tell a module of its weight's shape."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif hasattr(module, "normalized_shape"):
        module.normalized_shape = tuple(module.weight.shape)
