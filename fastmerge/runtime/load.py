"""Loading a folder of tasks into a model."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import dispatch, gpus
from ..errors import InputError
from ..formats.contents import Contents, open_contents
from ..formats.emr import EmrArtefact
from ..formats.mapping import Inputs
from ..formats.tasks import TasksRecord
from ..forms import well_formed
from ..recipe.preflight import Rename
from .heads import Heads
from .huggingface import build
from .matching import match
from .task_model import TaskModel, Wanted, active_of
from .weights import Active, EmrWeights, ExpertWeights, Weights

log = logging.getLogger(__name__)
warn_once = functools.cache(log.warning)  # a command looks for its device more than once


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
    of a folder of experts, what they must have been cut from. device: where the model is moved ("auto": to a GPU that
    PyTorch can use, where there is one; what keeps it, or fastmerge's kernels, from being used is logged). rename:
    (old, new) prefixes that turn the model's names into the folder's. Raises InputError with every problem found,
    before a weight is changed.

    resident: switches between tasks are made ready when first made, an artefact and its base kept in the memory of the
    model's GPU. From then on a switch to a task of an artefact, or between single sparse experts and the backbone, is
    nothing but launches, which a CUDA graph can capture. It can capture none that brings something in or waits: of
    tasks with heads of their own, to several experts or to one with a weight, and of experts of low rank, as twin's.
    """
    contents = open_contents(Path(path).expanduser(), base)
    active = active_of(task, contents.folder)
    place = None if device is None else find_device(device)
    if model is None:
        model = build(contents)
    if place is not None:
        model.to(place)
    opened: dict[str, Any] = {"path": contents.folder.path.resolve(), "rename": rename, "resident": resident}
    if base is not None and isinstance(contents.folder, EmrArtefact):
        opened["base"] = contents.source.place
    live = _around(model, contents, opened)
    live._weights.prepare(active)
    live.fill()
    live.set_task(task)
    live._weights.files.check_unchanged()
    return live


def _around(model: nn.Module, contents: Contents, opened: dict[str, Any]) -> TaskModel:
    """A live model of a folder around a model, which is as it is."""
    matched = match(model, contents, opened["rename"])
    files = Inputs(contents.headers(contents.folder.tasks))
    weights: Weights
    if isinstance(contents.folder, EmrArtefact):
        weights = EmrWeights(model, contents, matched, files, contents.folder, opened["resident"])
    else:
        weights = ExpertWeights(model, contents, matched, files, contents.folder, opened["resident"])
    return TaskModel(model, contents.folder, weights, Heads(model, contents, matched, files), opened)


def restored(
    own: dict[str, Any],
    active: Active,
    record: TasksRecord,
    first: dict[str, Tensor],
    labels: dict[str | None, dict[str, Any]],
) -> TaskModel:
    """A live model from its pickle: what is its own, and of its folder the tasks in force, the record, and the heads
    and labels of no task. InputError where the folder is not there, or another by now."""
    model, opened = own["_modules"]["model"], own["_opened"]
    _unshare(model)
    live = _around(model, open_contents(opened["path"], opened.get("base")), opened)
    if live._folder.record != record:
        raise InputError(f"{live._folder.path}: is of another merge than the live model was when it was pickled")
    live._heads.first, live._heads.labels = first, labels
    live.assume(active)
    live.__dict__.update(own)
    return live


def _unshare(model: nn.Module) -> None:
    """Give a model memory of its own: what multiprocessing sends is the sender's, whose task would change with ours."""
    storages: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        theirs: Any = tensor.untyped_storage()
        if theirs.is_shared() and theirs.nbytes():
            ours = storages.setdefault(theirs.data_ptr(), theirs.clone())
            tensor.data = tensor.data.new_empty(0).set_(ours, tensor.storage_offset(), tensor.shape, tensor.stride())


def find_device(name: str | torch.device) -> torch.device:
    """The device of this name; "auto": the GPU, or the CPU where PyTorch can use none.

    A model's own computing is PyTorch's, so that it stays on a GPU that fastmerge's kernels cannot use: there PyTorch
    computes in their place. Why that is, or why there is no use of a GPU at all, is logged as a warning.
    """
    automatic = name == "auto"
    if automatic and not torch.cuda.is_available():
        if gpus.there_is_one():
            warn_once("the model is on the CPU, though there is a GPU: %s", gpus.why_not("cuda"))
        return torch.device("cpu")
    try:
        device = torch.zeros(1, device="cuda" if automatic else name).device
    except Exception as error:  # an unknown name, a torch without CUDA, no GPU: each is an error of another class
        reason = str(error).splitlines()[0]
        if not automatic:
            raise InputError(f"device {name!r} cannot be used ({reason}); use auto or cpu") from None
        warn_once("the model is on the CPU, though there is a GPU: %s", reason)
        return torch.device("cpu")
    if device.type == "cuda" and (missing := dispatch.why_not("modulation", "cuda", device)):
        warn_once("fastmerge computes by PyTorch on this GPU, which is slower: %s", missing)
    return device
