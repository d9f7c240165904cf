"""The weights that tasks share, changed in place: by an EMR artefact's masks, or by experts.

Both kinds have `prepare`, which reads and checks and changes nothing, and `apply`, which brings the model from whatever
state an earlier call left it in, finished or not, to the one asked for. Every change is made known to autograd, which
then refuses to go backward through what was computed with other weights.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from .. import ops
from ..errors import InputError
from ..formats.contents import Contents
from ..formats.emr import EmrArtefact
from ..formats.experts import ExpertsFolder
from ..formats.mapping import Inputs
from .matching import Matched, tensor_of

if TYPE_CHECKING:
    from typing_extensions import Self

Memory = list[tuple[int, torch.dtype, torch.device]]  # where tensors are
Active = dict[str, float]  # the tasks in force, in the order of the folder's, and the weight of each


class Weights(ABC):
    """What the two kinds have in common: the model, the folder's files, and where its tensors are in the model."""

    def __init__(self, model: nn.Module, contents: Contents, matched: Matched, files: Inputs) -> None:
        self.model, self.files, self.places = model, files, matched.shared
        self.source = {name: files.whole(info) for name, info in contents.shared.items()}
        self.integers = {place: files.whole(contents.copied[name]) for name, place in matched.copied.items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The weights of a copy of the model, of the same files."""
        other = copy.copy(self)
        other.model, other.source = copy.deepcopy(self.model, memo), dict(self.source)
        return other

    def prepare(self, active: Active) -> None:
        """Make ready for a set of tasks; InputError where it cannot be, MergeError where a file has changed."""
        self.files.check_unchanged()

    @abstractmethod
    def apply(self, active: Active) -> None:
        """Bring the model's weights to a set of tasks; none of them is the model without a task."""

    @abstractmethod
    def assume(self, active: Active) -> None:
        """Go on from a model that has a set of tasks, for which this was made ready, in force."""

    def fill(self) -> None:
        """Give the model every tensor of the source, integers included."""
        for name in self.source:
            self.restore(name)
        for place, stored in self.integers.items():
            tensor_of(self.model, place).copy_(stored)

    def restore(self, name: str) -> None:
        """Give the model one tensor as it is without a task."""
        for place in self.places[name]:
            self._restore(name, place)

    def _restore(self, name: str, place: str) -> None:
        stored, theta = self.source[name], tensor_of(self.model, place).detach()
        if theta.dtype == stored.dtype:
            theta.copy_(stored)
        else:
            ops.combine(None, [stored.to(theta.device)], out=theta)
            increment_version(theta)


class EmrWeights(Weights):
    """base + rescaler · mask ⊙ unified, base and artefact read from their memory maps, or `resident` on the device."""

    def __init__(
        self,
        model: nn.Module,
        contents: Contents,
        matched: Matched,
        files: Inputs,
        artefact: EmrArtefact,
        resident: bool,
    ) -> None:
        super().__init__(model, contents, matched, files)
        self.resident = resident
        self._ready: dict[int, tuple[Memory, Callable[[], None]]] = {}  # by row: for what memory, and the switch
        self.artefact = artefact
        self.unified = {name: files.whole(info) for name, info in artefact.unified.items()}
        self.masks = {name: files.whole(info) for name, info in artefact.masks.items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        other = super().__deepcopy__(memo)
        other.unified, other.masks, other._ready = dict(self.unified), dict(self.masks), {}
        return other

    def prepare(self, active: Active) -> None:
        super().prepare(active)
        if len(active) > 1 or any(weight != 1 for weight in active.values()):
            raise InputError(
                f"{self.artefact.path}: an EMR artefact gives one task at a time, not {active}; several with weights "
                "need a folder of experts"
            )

    def assume(self, active: Active) -> None:
        pass  # every switch starts from the files

    def apply(self, active: Active) -> None:
        if self.resident:
            self._reside()
        for name in self.source if not active else ():
            self.restore(name)
        for task in active:
            row = self.artefact.tasks.index(task)
            thetas = [(n, tensor_of(self.model, place).detach()) for n in self.source for place in self.places[n]]
            self._switch(row, thetas) if self.resident else self._modulate(row, thetas)

    def _modulate(self, row: int, thetas: Sequence[tuple[str, Tensor]]) -> None:
        for name, theta in thetas:
            stored = self.source[name], self.unified[name], self.masks[name][row]
            base, unified, mask = (tensor.to(theta.device) for tensor in stored)
            ops.modulate(base, unified, mask, self.artefact.record.rescalers[row], out=theta)
            increment_version(theta)

    def _switch(self, row: int, thetas: Sequence[tuple[str, Tensor]]) -> None:
        """All tensors together, by launches that are made ready once for as long as the model stays where it is."""
        memory = _memory([theta for _, theta in thetas])
        known, switch = self._ready.get(row, (None, None))
        if switch is None or known != memory:
            if known is not None:  # the model has moved, and no switch that was ready is of any use
                self._ready.clear()
            scale = self.artefact.record.rescalers[row]
            parts = [(self.source[n], self.unified[n], self.masks[n][row], scale, theta) for n, theta in thetas]
            switch = ops.modulation(parts)
            self._ready[row] = memory, switch
        switch()
        for _, theta in thetas:
            increment_version(theta)

    def _reside(self) -> None:
        """Bring base and artefact to where the model's tensors are."""
        for name in self.source:
            device = tensor_of(self.model, self.places[name][0]).device
            for tensors in (self.source, self.unified, self.masks):
                tensors[name] = tensors[name].to(device)


@dataclass(slots=True)
class _Part:
    """An expert's part of one tensor of the model, with that tensor's device and dtype.

    kept: what is there without experts, unknown at first. alone: what is there with this one alone, at a scale.
    """

    expert: ops.Expert
    kept: Tensor | None = None
    alone: Tensor | None = None
    scale: float = 0.0

    def like(self, theta: Tensor) -> _Part:
        """The part for a model that has been moved, or changed its dtype."""
        if self.kept is None:
            return _Part(ops.Expert(*(part.to(theta.device) for part in self.expert)))
        if self.kept.dtype == theta.dtype and self.kept.device == theta.device:
            return self
        return _Part(ops.Expert(*(part.to(theta.device) for part in self.expert)), self.kept.to(theta))

    def with_values(self, values: Tensor | None) -> ops.Expert:
        assert values is not None
        return self.expert._replace(values=values)


class ExpertWeights(Weights):
    """The backbone with the sum of the active experts, at the elements that sparse ones touch. `resident`: switches
    between single tasks are made ready once, as far as their experts are sparse.

    What the backbone has there is kept, and every change starts from it: the same set of experts gives the same bits,
    whatever came before. Tensors that some expert changes by a product are made of the stored backbone instead.
    """

    def __init__(
        self,
        model: nn.Module,
        contents: Contents,
        matched: Matched,
        files: Inputs,
        folder: ExpertsFolder,
        resident: bool,
    ) -> None:
        super().__init__(model, contents, matched, files)
        self.folder, self.resident = folder, resident
        self._ready: dict[Any, tuple[Memory, Callable[[], None]]] = {}  # by tasks before and after
        self._sparse: dict[str, dict[str, ops.Expert]] = {}  # by task and tensor
        self._products: dict[str, dict[str, ops.LowRank]] = {}
        self._parts: dict[tuple[str, str], _Part] = {}  # by task and place
        self._touched: list[str] = []  # tasks whose values may be in the model

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        other = super().__deepcopy__(memo)
        other._sparse, other._products, other._ready = dict(self._sparse), dict(self._products), {}
        other._parts = {key: copy.copy(part) for key, part in self._parts.items()}
        return other

    def prepare(self, active: Active) -> None:
        super().prepare(active)
        for task in active:
            if task not in self._sparse:
                read = {name: ops.expert_of(parts) for name, parts in self.folder.read(task, self.files).items()}
                self._products[task] = {name: own for name, own in read.items() if isinstance(own, ops.LowRank)}
                self._sparse[task] = {name: own for name, own in read.items() if isinstance(own, ops.Expert)}

    def assume(self, active: Active) -> None:
        self._touched = list(active)
        for task in active:
            for name, place in self._places_of({*self._sparse[task]}):
                theta, expert = tensor_of(self.model, place).detach(), self._sparse[task][name]
                kept = ops.gather(self.source[name], expert)
                if kept.dtype != theta.dtype:
                    kept = ops.combine(None, [kept], dtype=theta.dtype).merged
                part = _Part(expert).like(theta)
                part.kept = kept.to(theta.device)
                self._parts[task, place] = part

    def apply(self, active: Active) -> None:
        self._touched = [task for task in self.folder.tasks if task in active or task in self._touched]
        multiplied = {name for task in self._touched for name in self._products[task]}
        changed = {name for task in self._touched for name in self._sparse[task]} - multiplied
        for name, place in self._places_of(multiplied):
            self._multiply(name, place, active)
        thetas = [(name, place, tensor_of(self.model, place).detach()) for name, place in self._places_of(changed)]
        for name, place, theta in thetas:  # an expert's elements may be there in a tensor of another shape, too
            if theta.shape != self.source[name].shape:
                shapes = f"{list(theta.shape)} by now, the folder's is {list(self.source[name].shape)}"
                raise InputError(f"model: {place!r} is {shapes}; load the folder into this model anew")
        if self.resident and list(active.values()) in ([], [1.0]):
            self._switch(active, thetas)
        else:
            for name, place, theta in thetas:
                ops.scatter(theta, self._change(name, place, theta, active))
                increment_version(theta)
        self._touched = list(active)

    def _places_of(self, names: set[str]) -> list[tuple[str, str]]:
        return [(name, place) for name in self.source if name in names for place in self.places[name]]

    def _multiply(self, name: str, place: str, active: Active) -> None:
        """The stored backbone + Σ weight · scale · up · down, rounded once."""
        scales = self.folder.record.experts
        wanted = [
            (self._products[task][name], weight * scales[task].scale)
            for task, weight in active.items()
            if name in self._products[task]
        ]
        if not wanted:
            return self._restore(name, place)
        theta = tensor_of(self.model, place).detach()
        product, scale = (_joined(wanted), 1.0) if len(wanted) > 1 else wanted[0]
        up, down = (part.to(theta.device) for part in product)
        ops.low_rank(self.source[name].to(theta.device), up, down, scale, out=theta)
        return increment_version(theta)

    def _switch(self, active: Active, thetas: Sequence[tuple[str, str, Tensor]]) -> None:
        """The change of all tensors, made ready once for as long as the model stays where it is."""
        key, memory = (*self._touched, None, *active), _memory([theta for *_, theta in thetas])
        known, switch = self._ready.get(key, (None, None))
        if switch is None or known != memory:
            if known is not None:  # the model has moved, and no switch that was ready is of any use
                self._ready.clear()
            switch = ops.scattering([(theta, self._change(n, place, theta, active)) for n, place, theta in thetas])
            self._ready[key] = memory, switch
        switch()
        for *_, theta in thetas:
            increment_version(theta)

    def _change(self, name: str, place: str, theta: Tensor, active: Active) -> list[ops.Expert]:
        """What brings a tensor to the active experts' sum."""
        parts = {}
        for task in self._touched:
            if name in self._sparse[task]:
                part = self._parts.get((task, place)) or _Part(self._sparse[task][name])
                self._parts[task, place] = parts[task] = part.like(theta)
        if any(part.kept is None for part in parts.values()):
            ops.scatter(theta, [part.with_values(part.kept) for part in parts.values() if part.kept is not None])
            for part in parts.values():
                part.kept = ops.gather(theta, part.expert) if part.kept is None else part.kept
        back = [part.with_values(part.kept) for task, part in parts.items() if task not in active]
        scales = self.folder.record.experts
        wanted = [(parts[task], weight * scales[task].scale) for task, weight in active.items() if task in parts]
        return [*back, *_sums(theta, wanted)]


def _memory(tensors: Sequence[Tensor]) -> Memory:
    return [(tensor.data_ptr(), tensor.dtype, tensor.device) for tensor in tensors]


def _joined(wanted: Sequence[tuple[ops.LowRank, float]]) -> ops.LowRank:
    """The sum of products with scales, as one product."""
    wide = ops.working_dtype([part for product, _ in wanted for part in product])
    up = torch.cat([scale * product.up.to(wide) for product, scale in wanted], dim=1)
    return ops.LowRank(up, torch.cat([product.down.to(wide) for product, _ in wanted]))


def _sums(theta: Tensor, wanted: Sequence[tuple[_Part, float]]) -> list[ops.Expert]:
    """Experts with the values that theta shall have: its kept ones + Σ scale · values, rounded once.

    wanted: the parts with their scales, in the order of the sum.
    """
    if len(wanted) == 1:
        [(part, scale)] = wanted
        if part.alone is None or part.scale != scale:
            part.alone, part.scale = _plus(part.kept, scale, part.expert.values, theta.dtype), scale
        return [part.with_values(part.alone)]
    wide = ops.working_dtype([theta, *(part.expert.values for part, _ in wanted)])
    sums = theta.new_zeros(theta.numel() if wanted else 0, dtype=wide)
    for part, scale in wanted:
        ops.scatter_add(sums, part.expert, scale)
    return [part.with_values(_plus(part.kept, 1.0, ops.gather(sums, part.expert), theta.dtype)) for part, _ in wanted]


def _plus(kept: Tensor | None, scale: float, values: Tensor, dtype: torch.dtype) -> Tensor:
    """kept + scale · values, rounded once."""
    assert kept is not None
    return ops.combine(None, [kept, values], [1.0, scale], dtype=dtype).merged
