"""A model that is the model of one task after another."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, SupportsIndex

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..errors import InputError, MergeError
from ..formats.tasks import TaskFolder
from ..forms import well_formed
from ..methods._declaration import FLOAT32
from .heads import Heads
from .weights import Active, Weights

Wanted = str | Mapping[str, float] | None


def active_of(task: Wanted, folder: TaskFolder) -> Active:
    """What is wanted, as a folder's tasks with a weight each; InputError where it is not that."""
    if not (task is None or isinstance(task, (str, Mapping))):
        raise InputError(f"a task is a name, {{name: weight}} or None, not {task!r}")
    wanted = {task: 1.0} if isinstance(task, str) else dict(task or {})
    folder.need(wanted)
    active = {name: _number(wanted[name]) for name in folder.tasks if name in wanted}
    wrong = [name for name, weight in active.items() if not abs(weight) <= FLOAT32]
    if wrong:
        raise InputError(
            f"task {name}: its weight is {wanted[name]!r}; expected a number that float32 can hold" for name in wrong
        )
    return active


def _number(value: Any) -> float:
    """A number of any library's, such as one of a router's weights; NaN where it is none."""
    try:
        return math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, ArithmeticError, RuntimeError):
        return math.nan


class TaskModel(nn.Module):
    """Wraps `model`, whose parameters it changes in place; whatever else is asked of it, the model answers.

    copy.deepcopy makes a model that switches for itself, of the same files, which neither copies. A pickle (torch.save,
    a worker of multiprocessing's or Ray's) holds the model as it is, and of the files where they are: the folder is
    loaded again where it is read, and must be the same there.

    A switch that fails, whatever the reason, leaves the task that was in force. Should even that fail, the model
    refuses to compute until another switch succeeds.
    """

    def __init__(
        self, model: nn.Module, folder: TaskFolder, weights: Weights, heads: Heads, opened: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.model = model
        self._folder, self._weights, self._heads = folder, weights, heads
        self._opened = dict(opened)  # the arguments of `load` that open the folder again
        self._active: Active = {}
        self._refusals: list[RemovableHandle] = []
        self._inference = _of_inference_mode(model)

    @property
    def tasks(self) -> list[str]:
        """The names of all tasks."""
        return list(self._folder.tasks)

    @property
    def current(self) -> str | dict[str, float] | None:
        """What is in force: a task, several with their weights, or None, the model without a task."""
        if list(self._active.values()) == [1.0]:
            return next(iter(self._active))
        return dict(self._active) or None

    def fill(self) -> None:
        """Give the model all weights anew, as they are without a task."""
        with torch.inference_mode(self._inference), torch.no_grad():
            self._weights.fill()
            self._heads.apply(None)
        self._active = {}

    def assume(self, active: Active) -> None:
        """Take the weights that the model has for those with these tasks in force."""
        self._weights.prepare(active)
        self._weights.assume(active)
        self._weights.files.check_read()
        self._active = active

    def set_task(self, task: Wanted) -> None:
        """Become the model of a task, of several experts with weights, or with None base or the backbone itself.

        Parameters stay where they are in memory, but those of a head with another shape. Heads and labels are those of
        the task with the largest weight, the first of equals. InputError, with nothing changed, for a task that is not
        there or a file that is damaged.
        """
        active = active_of(task, self._folder)
        if active == self._active and not self._refusals:
            return
        self._weights.prepare(active)
        try:
            self._become(active)
            self._active = active
        except BaseException as error:
            self._go_back(error)
            raise
        self._accept()

    @well_formed
    def add_expert(self, task: str, weight: float = 1.0) -> None:
        """Let an expert join those in force, or change its weight."""
        self.set_task({**self._active, task: weight})

    @well_formed
    def remove_expert(self, task: str) -> None:
        """Take an expert out; what stays has the very bits that it would have without it."""
        if task not in self._active:
            raise InputError(f"expert {task!r} is not in force; those are: {', '.join(self._active) or 'none'}")
        self.set_task({name: weight for name, weight in self._active.items() if name != task})

    @contextmanager
    def task(self, task: Wanted) -> Iterator[TaskModel]:
        """With this task; afterwards with the one before again."""
        before = dict(self._active)
        self.set_task(task)
        try:
            yield self
        finally:
            self.set_task(before)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The model's, under the model's own names."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The model's."""
        return self.model.load_state_dict(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> TaskModel:
        other = memo[id(self)] = self.__new__(type(self))
        memo[id(self._folder)] = self._folder
        other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        other._inference = _of_inference_mode(other.model)
        return other

    def __copy__(self) -> NoReturn:
        raise InputError("a live model changes its tensors in place, which no other can share; use copy.deepcopy")

    def __reduce_ex__(self, _: SupportsIndex) -> tuple[Any, ...]:
        from .load import restored  # which makes such models

        if self._refusals:
            raise MergeError("the model is of no task, since a switch failed: set a task before it is pickled")
        ours = ("_folder", "_weights", "_heads", "_active", "_refusals", "_inference")
        own = {name: value for name, value in self.__dict__.items() if name not in ours}
        return restored, (own, self._active, self._folder.record, self._heads.first, self._heads.labels)

    def _become(self, active: Active) -> None:
        with torch.inference_mode(self._inference), torch.no_grad():
            self._weights.apply(active)
            self._heads.apply(max(active, key=lambda name: active[name], default=None))
        self._weights.files.check_read()

    def _go_back(self, cause: BaseException) -> None:
        try:
            self._become(self._active)
        except BaseException as error:
            reason = (
                f"the model is of no task: a switch failed ({cause!r}), and so did going back ({error!r}); set a task "
                "again, or load it again"
            )
            self._refuse(reason)
            raise MergeError(reason) from cause

    def _refuse(self, reason: str) -> None:
        """Let no module compute, whichever way it is called."""

        def refuse(*_: object) -> None:
            raise MergeError(reason)

        self._accept()
        self._refusals = [module.register_forward_pre_hook(refuse) for module in self.model.modules()]

    def _accept(self) -> None:
        for refusal in self._refusals:
            refusal.remove()
        self._refusals = []


def _of_inference_mode(model: nn.Module) -> bool:
    """Its tensors can then be written to in that mode alone; others made in it would be such themselves."""
    return any(t.is_inference() for t in (*model.parameters(), *model.buffers()))
