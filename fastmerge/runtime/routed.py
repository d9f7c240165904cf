"""A model that computes every input under the task that a router gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..forms import well_formed
from .features import mean_pooled
from .router import Router
from .task_model import TaskModel


class RoutedModel(nn.Module):
    """Groups a mixed batch by task, computes each group under its task, and returns outputs in the order of the inputs.

    features: called with the arguments of a batch, under the model without a task, gives [batch, D] for the router;
    by default `mean_pooled`. Tensors and lists among the arguments whose length is the batch's are divided among the
    groups, others are given to each.

    Outputs may be tensors with a row a sample, lists of values such as texts with one a sample, and tuples, lists and
    mappings (ModelOutput) of them. Where groups' rows differ in shape, as of heads of different sizes, or are no
    tensors, there is a list with an entry a sample instead;
    a number of a whole group (a loss) becomes a tensor with the sample's group's.
    """

    @well_formed
    def __init__(self, task_model: TaskModel, router: Router, features: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        router.need(task_model.tasks, "the model")
        self.task_model = task_model
        self.router = router
        self.features = features

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self.task_model.task(None):
            found = self.features(*args, **kwargs) if self.features else mean_pooled(self.task_model, *args, **kwargs)
            tasks = self.router.predict(found)
            groups = {task: [i for i, own in enumerate(tasks) if own == task] for task in dict.fromkeys(tasks)}
            outputs = [self._group(task, rows, len(tasks), args, kwargs) for task, rows in groups.items()]
            if not outputs:
                return self.task_model(*args, **kwargs)
        return _join(outputs, list(groups.values()))

    def _group(self, task: str, rows: list[int], batch: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.task_model.set_task(task)
        return self.task_model(*_rows_of(args, rows, batch), **_rows_of(kwargs, rows, batch))


def _rows_of(value: Any, rows: list[int], batch: int) -> Any:
    """The arguments of a group: of everything that has a row a sample the group's rows."""
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and len(value) == batch else value
    if isinstance(value, Mapping):
        return {name: _rows_of(part, rows, batch) for name, part in value.items()}
    if isinstance(value, tuple):
        return _make(value)(_rows_of(part, rows, batch) for part in value)
    if isinstance(value, list) and len(value) == batch:
        return [value[i] for i in rows]
    return value


def _join(outputs: Sequence[Any], groups: Sequence[list[int]]) -> Any:
    """The groups' outputs as one, in the order of the inputs."""
    first = outputs[0]
    if all(isinstance(output, Mapping) for output in outputs):
        parts = {name: _join([output[name] for output in outputs], groups) for name in first}
        # A ModelOutput takes keywords alone, which other keys cannot be.
        return type(first)(**parts) if all(isinstance(name, str) for name in parts) else type(first)(parts)
    by_sample = all(_is_by_sample(output, len(group)) for output, group in zip(outputs, groups, strict=True))
    if not by_sample and all(isinstance(output, (tuple, list)) for output in outputs):
        if len({len(output) for output in outputs}) > 1:
            raise InputError("routed: the groups' outputs have different lengths; they cannot be put in order")
        return _make(first)(_join(own, groups) for own in zip(*outputs, strict=True))
    if all(output is None for output in outputs):
        return None
    rows = [_by_sample(output, len(group)) for output, group in zip(outputs, groups, strict=True)]
    order = torch.tensor([i for group in groups for i in group]).argsort()
    if all(isinstance(own, Tensor) for own in rows) and len({own.shape[1:] for own in rows}) == 1:
        joined = torch.cat(rows)
        return joined[order.to(joined.device)]
    every = [row for own in rows for row in own]
    return [every[i] for i in order.tolist()]


def _make(value: Any) -> Any:
    """What makes a tuple or list of the kind of this one, which may be a named tuple."""
    return getattr(type(value), "_make", type(value))


def _is_by_sample(output: Any, samples: int) -> bool:
    """Whether an output is a list of plain values, as texts, one a sample."""
    parts = (Tensor, Mapping, tuple, list)
    return isinstance(output, list) and len(output) == samples and not any(isinstance(own, parts) for own in output)


def _by_sample(output: Any, samples: int) -> Any:
    """A group's output with an entry a sample."""
    if _is_by_sample(output, samples):
        return output
    if isinstance(output, Tensor):
        if not output.ndim:
            return output.expand(samples)
        if len(output) != samples:
            raise InputError(
                f"routed: an output has {len(output)} rows for {samples} samples; it cannot be put in order"
            )
        return output
    return [output] * samples
