"""Models that become the model of one task after another, as FusionBench's modulated models do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, cast

import torch
from fusion_bench.models.modulator import ModulatedModel, TaskModulator
from fusion_bench.models.parameter_dict import ParameterDictModel
from torch import Tensor, nn

from ... import ops
from ...engine.state_dicts import Merged
from ...errors import InputError

OTHERWISE = (
    "in a program save each task's (model.set_task(name), then the pool's save_model(model.backbone, folder)), or "
    "model.state_dict(), which has them all; fastmerge merge writes them as one small folder"
)


class Modulated(ModulatedModel):
    """A backbone whose weights `set_task` changes in place; every task's, and the backbone's own, to the bit.

    base, unified: what masks are applied to; empty where tasks are experts. `backbone` is the model that is Hugging
    Face's, or whichever it was.
    """

    def __init__(self, backbone: nn.Module, base: Mapping[str, Tensor], unified: Mapping[str, Tensor]) -> None:
        super().__init__(backbone, {})
        self.base, self.unified = _stored(base), _stored(unified)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """With the backbone as it is without a task; of a model that has one now, in memory of its own."""
        task = self._current_task
        if task is None:
            return super().state_dict(*args, **kwargs)
        self.modulators[task].remove(self)
        found, copies = super().state_dict(*args, **kwargs), dict[object, Tensor]()
        for name, tensor in self.backbone.state_dict().items():
            place = tensor.data_ptr(), tensor.shape
            copies[place] = found[f"{kwargs.get('prefix', '')}backbone.{name}"] = copies.get(place, tensor.clone())
        self.set_task(task)
        return found

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Afterwards the model is without a task."""
        if self._current_task is not None:
            self.modulators[self._current_task].remove(self)
        return super().load_state_dict(*args, **kwargs)

    def save_pretrained(self, *_: Any, **__: Any) -> NoReturn:
        """What pools of Hugging Face's models save by; InputError, which says how tasks are saved."""
        raise InputError(f"a model with tasks is none of Hugging Face's; {OTHERWISE}")

    @classmethod
    def with_masks(cls, backbone: nn.Module, merged: Merged) -> Modulated:
        """Of an EMR merge: base + rescaler · mask ⊙ unified."""
        tensors, names = backbone.state_dict(), _distinct(backbone, merged.unified)
        unified = {name: merged.unified[name][0] for name in names}
        model = cls(backbone, {name: tensors[name].clone() for name in names}, unified)
        for row, (task, own) in enumerate(merged.own.items()):
            masks = {name: merged.unified[name][1][row].clone() for name in names}
            model.add_modulator(
                task, MaskModulator(_fitting(task, own, tensors), masks, merged.stats["rescalers"][task])
            )
        return model

    @classmethod
    def with_experts(cls, backbone: nn.Module, merged: Merged) -> Modulated:
        """Of a FREE merge: backbone + scale · expert."""
        model, tensors = cls(backbone, {}, {}), backbone.state_dict()
        for task, own in merged.own.items():
            found = cast("dict[str, ops.Expert]", merged.experts[task])
            experts = {name: found[name] for name in _distinct(backbone, found)}
            scale = merged.stats["scales"][task]
            model.add_modulator(task, ExpertModulator(_fitting(task, own, tensors), experts, scale))
        return model


class Modulator(TaskModulator):
    """A task's own tensors, such as heads, put in the backbone's place and taken out again."""

    def __init__(self, own: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.own = _stored(own)
        self.before: dict[str, Tensor] = {}

    @torch.no_grad()
    def apply(self, modulated_model: Modulated) -> None:
        tensors = modulated_model.backbone.state_dict()
        self.before = {name: tensors[name].clone() for name in self.own}
        for name in self.own:
            tensors[name].copy_(self.own[name])
        self.change(modulated_model, tensors)

    @torch.no_grad()
    def remove(self, modulated_model: Modulated) -> None:
        tensors = modulated_model.backbone.state_dict()
        for name, values in self.before.items():
            tensors[name].copy_(values)
        self.restore(modulated_model, tensors)
        self.before = {}
        modulated_model._current_task = None

    def change(self, model: Modulated, tensors: Mapping[str, Tensor]) -> None:
        """Change the tensors that tasks share."""
        raise NotImplementedError

    def restore(self, model: Modulated, tensors: Mapping[str, Tensor]) -> None:
        """Undo it."""
        raise NotImplementedError


class MaskModulator(Modulator):
    """EMR-Merging's: a packed mask for each tensor, one bit an element, and a rescaler."""

    def __init__(self, own: Mapping[str, Tensor], masks: Mapping[str, Tensor], rescaler: float) -> None:
        super().__init__(own)
        self.masks = _stored(masks)
        self.rescaler = nn.Parameter(torch.tensor(rescaler, dtype=torch.float64), requires_grad=False)

    def change(self, model: Modulated, tensors: Mapping[str, Tensor]) -> None:
        scale = float(self.rescaler)
        for name in self.masks:
            ops.modulate(model.base[name], model.unified[name], self.masks[name], scale, out=tensors[name])

    def restore(self, model: Modulated, tensors: Mapping[str, Tensor]) -> None:
        for name in self.masks:
            tensors[name].copy_(model.base[name])


class ExpertModulator(Modulator):
    """FREE-Merging's: the largest elements of the task vector, and their scale."""

    def __init__(self, own: Mapping[str, Tensor], experts: Mapping[str, ops.Expert], scale: float) -> None:
        super().__init__(own)
        self.counts, self.offsets, self.values = (
            _stored({name: expert[part] for name, expert in experts.items()}) for part in range(3)
        )
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64), requires_grad=False)
        self.replaced: dict[str, Tensor] = {}

    def change(self, model: Modulated, tensors: Mapping[str, Tensor]) -> None:
        self.replaced = {name: ops.gather(tensors[name], self.expert(name)) for name in self.values}
        for name in self.values:
            ops.scatter_add(tensors[name], self.expert(name), float(self.scale))

    def restore(self, model: Modulated, tensors: Mapping[str, Tensor]) -> None:
        for name, values in self.replaced.items():
            theta = tensors[name]  # the model may have been moved since
            ops.scatter(theta, [self.expert(name)._replace(values=values.to(theta))])
        self.replaced = {}

    def expert(self, name: str) -> ops.Expert:
        return ops.Expert(self.counts[name], self.offsets[name], self.values[name])


def _stored(tensors: Mapping[str, Tensor]) -> ParameterDictModel:
    """Tensors that move with the model and are saved with it."""
    return ParameterDictModel({name: nn.Parameter(t, requires_grad=False) for name, t in tensors.items()})


def _distinct(backbone: nn.Module, names: Iterable[str]) -> list[str]:
    """Of names that are one tensor in the backbone, such as tied embeddings, the first."""
    tensors, first = backbone.state_dict(), dict[int, str]()
    for name in names:
        first.setdefault(tensors[name].data_ptr(), name)
    return list(first.values())


def _fitting(task: str, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    wrong = [name for name, tensor in own.items() if name not in tensors or tensors[name].shape != tensor.shape]
    if wrong:
        raise InputError(f"task {task}: the pre-trained model has no room for its {name}" for name in wrong)
    return own
