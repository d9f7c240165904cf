"""A model that computes every input under the task that a router gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .features import mean_pooled
from .router import Router
from .task_model import TaskModel


class RoutedModel(nn.Module):
    """Groups a mixed batch by task, computes each group under its task, and returns outputs in the order of the inputs.

    features: called with the arguments of a batch, under the model without a task, gives [batch, D] for the router;
    by default `mean_pooled`. Tensors and lists among the arguments whose length is the batch's are divided among the
    groups, others are given to each.

    Outputs may be tensors with a row a sample, and tuples, lists and mappings (ModelOutput) of them. Where groups' rows
    differ in shape, as of heads of different sizes, or are no tensors, there is a list with an entry a sample instead;
    a number of a whole group (a loss) becomes a tensor with the sample's group's.
    """

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
        return outputs[0] if len(outputs) == 1 else _join(outputs, list(groups.values()))

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
        return tuple(_rows_of(part, rows, batch) for part in value)
    if isinstance(value, list) and len(value) == batch:
        return [value[i] for i in rows]
    return value


def _join(outputs: Sequence[Any], groups: Sequence[list[int]]) -> Any:
    """The groups' outputs as one, in the order of the inputs."""
    first = outputs[0]
    if all(isinstance(output, Mapping) for output in outputs):
        return type(first)(**{name: _join([output[name] for output in outputs], groups) for name in first})
    if all(isinstance(output, (tuple, list)) for output in outputs):
        if len({len(output) for output in outputs}) > 1:
            raise InputError("routed: the groups' outputs have different lengths; they cannot be put in order")
        make = getattr(type(first), "_make", type(first))  # of a named tuple
        return make(_join(parts, groups) for parts in zip(*outputs, strict=True))
    if all(output is None for output in outputs):
        return None
    rows = [_by_sample(output, len(group)) for output, group in zip(outputs, groups, strict=True)]
    order = torch.tensor([i for group in groups for i in group]).argsort()
    if all(isinstance(own, Tensor) for own in rows) and len({own.shape[1:] for own in rows}) == 1:
        joined = torch.cat(rows)
        return joined[order.to(joined.device)]
    every = [row for own in rows for row in own]
    return [every[i] for i in order.tolist()]


def _by_sample(output: Any, samples: int) -> Any:
    """A group's output with an entry a sample."""
    if isinstance(output, Tensor):
        if not output.ndim:
            return output.expand(samples)
        if len(output) != samples:
            raise InputError(
                f"routed: an output has {len(output)} rows for {samples} samples; it cannot be put in order"
            )
        return output
    return [output] * samples
