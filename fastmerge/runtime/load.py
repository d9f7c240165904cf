"""Loading a folder of tasks into a model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..errors import InputError
from ..formats.contents import open_contents
from ..formats.emr import EmrArtefact
from ..formats.mapping import Inputs
from ..forms import well_formed
from ..recipe.preflight import Rename
from .heads import Heads
from .huggingface import build
from .matching import match
from .task_model import TaskModel, Wanted, active_of
from .weights import EmrWeights, ExpertWeights, Weights


@well_formed
def load(
    path: str | Path,
    model: nn.Module | None = None,
    *,
    task: Wanted = None,
    base: str | Path | None = None,
    device: str | torch.device | None = None,
    rename: Rename = (),
    resident: bool = False,
) -> TaskModel:
    """A live model of an EMR artefact or a folder of experts, which `set_task` makes the model of one task or another.

    model: gets the weights, in place and in its own dtypes; by default a Hugging Face model is built from the folder's
    configuration. task: the one to begin with. base: where an artefact's base model is now, if no longer where it says;
    of a folder of experts, what they must have been cut from. device: where the model is moved ("auto": to a GPU, where
    there is one). rename: (old, new) prefixes that turn the model's names into the folder's. resident: switches between
    tasks are made ready when first made, an artefact and its base kept in the memory of the model's GPU: from then on
    they are nothing but launches, as a CUDA graph wants. Raises InputError with every problem found, before a weight is
    changed.
    """
    contents = open_contents(Path(path).expanduser(), base)
    active = active_of(task, contents.folder)
    place = None if device is None else find_device(device)
    if model is None:
        model = build(contents)
    if place is not None:
        model.to(place)
    matched = match(model, contents, rename)
    files = Inputs(contents.headers(contents.folder.tasks))
    weights: Weights
    if isinstance(contents.folder, EmrArtefact):
        weights = EmrWeights(model, contents, matched, files, contents.folder, resident)
    else:
        weights = ExpertWeights(model, contents, matched, files, contents.folder, resident)
    weights.prepare(active)
    live = TaskModel(model, contents.folder, weights, Heads(model, contents, matched, files))
    live.fill()
    live.set_task(task)
    files.check_unchanged()
    return live


def find_device(name: str | torch.device) -> torch.device:
    """The device of this name; "auto": a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except Exception as error:  # an unknown name, a torch without CUDA, no GPU: each is an error of another class
        raise InputError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}); use auto or cpu") from None
