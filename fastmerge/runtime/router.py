"""Which task an input is of: a linear classifier on features, trained in seconds from a few hundred samples."""

from __future__ import annotations

import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from torch import Tensor

from .. import __version__
from ..errors import InputError
from ..formats.contents import recorded_tasks
from ..formats.folder import holds, write_whole
from ..formats.mapping import Inputs
from ..formats.safetensors import read_header, write_header
from ..formats.tasks import read_record
from ..forms import explained, well_formed

RECORD, TENSORS = "router.json", "router.safetensors"
STEPS = 200  # of L-BFGS at most; the problem is convex
WEIGHT_DECAY = 1e-3


class RouterRecord(BaseModel):
    """router.json."""

    format: Literal["fastmerge.router"] = "fastmerge.router"
    version: Literal[1] = 1
    fastmerge: str
    tasks: list[str]
    features: int
    accuracy: dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Router:
    """softmax(weight · (features − mean) / deviation + bias) over `tasks`.

    weight: [K, D], bias: [K], mean and deviation: [D], float32. `accuracy` is of the samples that it was trained on
    ("train") and of those kept back ("validation").
    """

    tasks: tuple[str, ...]
    weight: Tensor
    bias: Tensor
    mean: Tensor
    deviation: Tensor
    accuracy: dict[str, float] = field(default_factory=dict)

    @classmethod
    @well_formed
    def fit(
        cls,
        features: Tensor,
        labels: Tensor | Sequence[str] | Sequence[int],
        tasks: Sequence[str] | None = None,
        *,
        validation: float = 0.2,
        seed: int = 0,
    ) -> Router:
        """Train a router on features [N, D] and a label for each: a task's name, or its place in `tasks`.

        `validation` of each task's samples, chosen by `seed`, are kept back to measure accuracy. Without `tasks` they
        are the labels in the order in which they come first (numbers: in their order).
        """
        names, target = _labels(labels, tasks)
        with torch.inference_mode(False), torch.enable_grad():
            x = features.detach().to("cpu", torch.float32, copy=True)  # one of inference mode has no gradients
            _check(x, target, names, validation)
            kept_back = held_out(target, len(names), validation, seed)
            mean, deviation = x[~kept_back].mean(0), x[~kept_back].std(0, correction=0)
            deviation = torch.where(deviation > 0, deviation, 1)
            weight, bias = _train((x[~kept_back] - mean) / deviation, target[~kept_back], len(names))
        router = cls(tuple(names), weight, bias, mean, deviation)
        right = router._logits(x).argmax(1) == target
        for part, where in (("train", ~kept_back), ("validation", kept_back)):
            if where.any():
                router.accuracy[part] = float(right[where].double().mean())
        return router

    @property
    def width(self) -> int:
        """D, how many numbers the features of a sample are."""
        return self.weight.shape[1]

    @explained
    def weights(self, features: Tensor) -> Tensor:
        """How likely each sample is of each task: float32 [N, K], rows sum to 1. features: [N, D]."""
        if features.ndim != 2 or features.shape[1] != self.width:
            raise InputError(
                f"router: features must be [N, {self.width}], they are {list(features.shape)}; "
                "compute them as those it was trained on"
            )
        found = self._logits(features).softmax(1)
        wild = (~found.isfinite()).any(1).nonzero().flatten().tolist()
        if wild:
            raise InputError(
                f"router: the features of sample {wild[0]} hold NaN, infinity or numbers out of range; "
                "look at the model that they are of"
            )
        return found

    def predict(self, features: Tensor) -> list[str]:
        """The likeliest task of each sample. features: [N, D]."""
        return [self.tasks[k] for k in self.weights(features).argmax(1).tolist()]

    def need(self, tasks: Sequence[str], where: str) -> None:
        """InputError where the router is for other tasks than these."""
        if set(tasks) != set(self.tasks):
            raise InputError(
                f"router: it is for the tasks {', '.join(self.tasks)}, {where} has {', '.join(tasks)}; train it anew"
            )

    @well_formed
    def save(self, folder: str | Path) -> None:
        """Write router.safetensors and router.json to a folder, that of the experts for one."""
        path = Path(folder).expanduser()
        known = recorded_tasks(path)
        if known is not None:
            self.need(known, str(path))
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path}: cannot be made a folder: {error.strerror}; choose another") from None
        record = RouterRecord(
            fastmerge=__version__, tasks=list(self.tasks), features=self.width, accuracy=self.accuracy
        )
        shapes = [(name, "F32", tuple(tensor.shape)) for name, tensor in self._tensors().items()]
        metadata = {"format": "pt", "fastmerge.format": "router", "tasks": _listed(self.tasks)}
        header, _ = write_header(shapes, metadata)
        data = b"".join(tensor.cpu().contiguous().numpy().tobytes() for tensor in self._tensors().values())
        write_whole(path / TENSORS, header + data)
        text = json.dumps(record.model_dump(), indent=2, ensure_ascii=False) + "\n"
        write_whole(path / RECORD, text.encode())

    @classmethod
    @well_formed
    def load(cls, folder: str | Path) -> Router:
        """Read a router that `save` wrote. InputError where it is damaged, or for other tasks than its folder's."""
        path = Path(folder).expanduser()
        if not holds(path, RECORD) or not holds(path, TENSORS):
            raise InputError(f"{path}: has no router, which is {RECORD} and {TENSORS}")
        record = read_record(path / RECORD, RouterRecord)
        header = read_header(path / TENSORS)
        k, d = len(record.tasks), record.features
        shapes = {"weight": (k, d), "bias": (k,), "mean": (d,), "deviation": (d,)}
        found = {name: (info.dtype, info.shape) for name, info in header.tensors.items()}
        damaged = InputError(
            f"{path}: {TENSORS} and {RECORD} do not fit together; the router is damaged: train it again"
        )
        if found != {name: ("F32", shape) for name, shape in shapes.items()} or len(set(record.tasks)) != k or not k:
            raise damaged
        written = _listed(record.tasks)  # a save that was cut short leaves one file of two routers each
        if header.metadata.get("tasks", written) != written:
            raise damaged
        files = Inputs([header])
        tensors = {name: files.whole(info).clone() for name, info in header.tensors.items()}
        files.check_unchanged()
        if not all(tensor.isfinite().all() for tensor in tensors.values()) or not (tensors["deviation"] > 0).all():
            raise damaged
        router = cls(tuple(record.tasks), **tensors, accuracy=record.accuracy)
        known = recorded_tasks(path)
        if known is not None:
            router.need(known, str(path))
        return router

    def _tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "bias": self.bias, "mean": self.mean, "deviation": self.deviation}

    def _logits(self, features: Tensor) -> Tensor:
        weight, bias, mean, deviation = (t.to(features.device) for t in self._tensors().values())
        with torch.no_grad():
            return ((features.float() - mean) / deviation) @ weight.T + bias


def _listed(tasks: Sequence[str]) -> str:
    return json.dumps(list(tasks))


def held_out(target: Tensor, tasks: int, share: float, seed: int) -> Tensor:
    """Which samples `fit` keeps back, bool [N]: the share of each task's, of which one at least is trained on.

    target: the place of each sample's task among `tasks` of them."""
    generator = generator_of(seed)
    kept_back = torch.zeros(len(target), dtype=torch.bool)
    for k in range(tasks):
        own = (target == k).nonzero().flatten()
        own = own[torch.randperm(len(own), generator=generator)]
        kept_back[own[: min(round(share * len(own)), len(own) - 1)]] = True
    return kept_back


def generator_of(seed: int) -> torch.Generator:
    """Random numbers of a seed; InputError where it is none of torch's."""
    try:
        return torch.Generator().manual_seed(int(seed))
    except (ValueError, RuntimeError):
        raise InputError(f"seed: is {seed}; expected a whole number of 64 bits") from None


def _labels(labels: Tensor | Sequence[str] | Sequence[int], tasks: Sequence[str] | None) -> tuple[list[str], Tensor]:
    """The names of the tasks, and the place of each label's among them, −1 where it has none."""
    given: list[Any] = labels.flatten().tolist() if isinstance(labels, Tensor) else list(labels)
    if all(isinstance(label, str) for label in given):
        names = list(dict.fromkeys(given)) if tasks is None else list(tasks)
        place = {name: k for k, name in enumerate(names)}
        return names, torch.tensor([place.get(label, -1) for label in given])
    try:
        numbers = [operator.index(label) for label in given]
    except TypeError as error:
        raise InputError("router: labels are either names of tasks or whole numbers, all alike") from error
    names = [str(k) for k in range(max(numbers, default=0) + 1)] if tasks is None else list(tasks)
    return names, torch.tensor([k if 0 <= k < len(names) else -1 for k in numbers])


def _check(features: Tensor, target: Tensor, names: Sequence[str], validation: float) -> None:
    problems = []
    if features.ndim != 2 or features.shape[0] != len(target) or not features.numel():
        problems.append(f"features must be [N, D] with a label each; they are {list(features.shape)} and {len(target)}")
    elif not features.isfinite().all():
        problems.append("features hold NaN or infinity")
    if (target < 0).any():
        problems.append(f"{int((target < 0).sum())} labels are of no task; there are {', '.join(names)}")
    missing = [name for k, name in enumerate(names) if not (target == k).any()]
    if missing:
        problems.append(f"there are no samples of {', '.join(missing)}")
    if len(set(names)) != len(names):
        problems.append(f"two tasks have one name: {', '.join(names)}")
    problems = [f"router: {problem}" for problem in problems] + share_problems(validation)
    if problems:
        raise InputError(problems)


def share_problems(validation: float) -> list[str]:
    """What is wrong with the share of samples that is kept back."""
    good = 0 <= validation < 1
    return [] if good else [f"router: validation is {validation}; expected a share from 0 to below 1"]


def _train(x: Tensor, target: Tensor, tasks: int) -> tuple[Tensor, Tensor]:
    """Weight and bias that minimise cross-entropy with weight decay: a convex problem, started from zero."""
    weight = torch.zeros(tasks, x.shape[1], requires_grad=True)
    bias = torch.zeros(tasks, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (
            torch.nn.functional.cross_entropy(x @ weight.T + bias, target) + WEIGHT_DECAY * weight.square().sum() / 2
        )
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
