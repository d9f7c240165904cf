"""FW-Merging of a model pool."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from fusion_bench import BaseAlgorithm, BaseModelPool
from fusion_bench.mixins import LightningFabricMixin
from fusion_bench.modelpool import CLIPVisionModelPool
from fusion_bench.utils import instantiate
from torch import nn
from torch.utils.data import DataLoader, Subset

from ... import fw
from ...errors import InputError, nearest
from ...fw.loop import frank_wolfe
from ...fw.settings import Settings
from . import clip, pools
from .algorithms import plain, register

log = logging.getLogger(__name__)

GIVEN = {"model", "pool", "loss_fn", "batches"}  # by the pool and the arguments below
LOSSES: Mapping[str, Callable[..., Any]] = {
    "cross_entropy": fw.cross_entropy,
    "causal_lm": fw.causal_lm,
    "entropy": fw.entropy,
}


class FrankWolfe(LightningFabricMixin, BaseAlgorithm):
    """`fastmerge.frank_wolfe` over the models of a pool, on the first samples of its training data.

    loss: "cross_entropy", "causal_lm", "entropy", or the configuration of a function of model and batch (`_target_`,
    `_partial_: true`). Of a pool of CLIP's vision models the named ones are of zero-shot heads, and its data sets hold
    images, under names of tasks whose classes FusionBench knows. samples: of each data set of the pool, its tasks. The
    model is optimised on the device of the program's fabric. Other arguments are those of `fastmerge.frank_wolfe`.
    """

    _config_mapping = BaseAlgorithm._config_mapping | {
        name: name for name in ("loss", "samples", "batch_size", "inplace")
    }

    def __init__(
        self,
        loss: str | Mapping[str, Any] = "cross_entropy",
        *,
        samples: int = 100,
        batch_size: int = 16,
        inplace: bool = True,
        **arguments: Any,
    ) -> None:
        super().__init__(**{name: value for name, value in arguments.items() if name.startswith("_")})
        self.loss, self.samples, self.batch_size, self.inplace = plain(loss), samples, batch_size, inplace
        self.arguments = {name: plain(value) for name, value in arguments.items() if not name.startswith("_")}
        register(self, self.arguments)
        known = [name for name in inspect.signature(frank_wolfe).parameters if name not in GIVEN]
        problems = [
            f"frank_wolfe has no parameter {name!r}{nearest(name, known)}; it has {', '.join(known)}"
            for name in self.arguments
            if name not in known
        ]
        if isinstance(self.loss, str) and self.loss not in LOSSES:
            hint = nearest(self.loss, LOSSES)
            problems.append(f"loss: is {self.loss!r}{hint}; expected {', '.join(LOSSES)}, or a _target_")
        if problems:
            raise InputError(problems)
        Settings(**{name: self.arguments[name] for name in Settings.__slots__ if name in self.arguments})

    def run(self, modelpool: BaseModelPool | Mapping[str, nn.Module]) -> nn.Module:
        """The pre-trained model (`inplace`), or a copy, with the weights that the steps lead to."""
        pool = pools.opened(modelpool)
        if not pool.has_train_dataset:
            raise InputError("modelpool: needs train_datasets, a name and a data set for each task to merge for")
        zero_shot = isinstance(pool, CLIPVisionModelPool) and isinstance(self.loss, str)
        tasks = list(pool.train_dataset_names)
        if zero_shot and (problems := self._zero_shot_problems(pool, tasks)):
            raise InputError(problems)
        base = pool.load_pretrained_model()
        model = pools.filled(base, pools.state(base), inplace=self.inplace)
        if self._fabric_instance is not None:
            model.to(self.fabric.device)
        candidates = {name: pools.state(pool.load_model(name)) for name in pool.model_names}
        data = {task: pool.load_train_dataset(task) for task in tasks}
        loss = LOSSES[self.loss] if isinstance(self.loss, str) else instantiate(self.loss)
        if zero_shot:
            heads = clip.ZeroShot(pool, tasks, next(model.parameters()).device)
            loss = {task: heads.loss(loss, task) for task in tasks}
            data = {task: heads.images(own) for task, own in data.items()}
        batches = {task: self.batches(own) for task, own in data.items()}
        with torch.enable_grad():
            result = frank_wolfe(model, candidates, loss, batches, **self.arguments)
        log.info("loss %s after %d steps", result.loss, len(result.steps))
        return model

    def _zero_shot_problems(self, pool: CLIPVisionModelPool, tasks: Sequence[str]) -> list[str]:
        own = ["loss: causal_lm is not of images; expected cross_entropy, entropy, or a _target_"]
        return [*(own if self.loss == "causal_lm" else []), *clip.problems(pool, tasks)]

    def batches(self, dataset: Any) -> DataLoader[Any]:
        """The same in every step."""
        return DataLoader(Subset(dataset, range(min(self.samples, len(dataset)))), self.batch_size)
