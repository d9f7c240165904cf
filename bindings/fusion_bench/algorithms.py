"""Merges of a model pool."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from fusion_bench import BaseAlgorithm, BaseModelPool
from omegaconf import OmegaConf
from torch import nn

from ... import methods
from ...engine.state_dicts import Merged, merge_state_dicts
from ...errors import InputError
from . import pools
from .tasks import OTHERWISE, Modulated


class Algorithm(BaseAlgorithm):
    """A method of fastmerge; its parameters are arguments here, and are checked before a model is loaded.

    method: its name. task_specific: patterns of tensors that stay the pre-trained model's, and each task's own where
    there are tasks. inplace: the pre-trained model becomes the merged one, where the pool holds it in memory.
    """

    _config_mapping = BaseAlgorithm._config_mapping | {"inplace": "inplace", "task_specific": "task_specific"}
    method: str

    def __init__(self, *, inplace: bool = True, task_specific: Sequence[str] = (), **arguments: Any) -> None:
        super().__init__(**{name: value for name, value in arguments.items() if name.startswith("_")})
        self.inplace, self.task_specific = inplace, list[str](plain(task_specific))
        self.arguments = {name: plain(value) for name, value in arguments.items() if not name.startswith("_")}
        register(self, self.arguments)
        self.parameters = self.translated(**self.arguments)
        methods.build(self.method, self.parameters)

    def translated(self, **arguments: Any) -> dict[str, Any]:
        """The method's parameters, of arguments under FusionBench's names."""
        return arguments

    @torch.no_grad()
    def run(self, modelpool: BaseModelPool | Mapping[str, nn.Module]) -> nn.Module:
        """Merges the pool. A pool of models in memory is left as it is, but for `inplace`."""
        pool = pools.opened(modelpool)
        self.check_saving(pool)
        base = pool.load_pretrained_model()
        states = {name: pools.state(pool.load_model(name)) for name in pool.model_names}
        own = pools.state(base)
        merged = merge_state_dicts(self.method, own, states, task_specific=self.kept(own), **self.parameters)
        return self.result(base, merged)

    def check_saving(self, pool: BaseModelPool) -> None:
        """InputError where the program is to save a model with tasks by a pool that saves Hugging Face's."""
        path = getattr(self._program, "merged_model_save_path", None)
        if path is None or type(pool).save_model is BaseModelPool.save_model:
            return
        passes = methods.build(self.method, self.parameters).passes(list(pool.model_names), False)
        if any("unified" in one.writes or one.experts for one in passes):
            raise InputError(
                f"merged_model_save_path: a {type(pool).__name__} saves Hugging Face's models, not those with tasks, "
                f"which {self.method} gives; leave it out, and {OTHERWISE}"
            )

    def kept(self, names: Mapping[str, Any]) -> Sequence[str]:
        """Patterns of the tensors that are not merged, of a model with these."""
        return self.task_specific

    def result(self, base: Any, merged: Merged) -> nn.Module:
        """A model with tasks, where the method has kept them apart; else the merged one."""
        if merged.unified:
            return Modulated.with_masks(pools.filled(base, pools.state(base), inplace=self.inplace), merged)
        module = pools.filled(base, merged.state_dict, inplace=self.inplace)
        return Modulated.with_experts(module, merged) if merged.experts else module


class Merge(Algorithm):
    """Any method, by its name."""

    _config_mapping = Algorithm._config_mapping | {"method": "method"}

    def __init__(self, method: str, **arguments: Any) -> None:
        self.method = method
        super().__init__(**arguments)


class EMR(Algorithm):
    """EMR-Merging. The rescalers of FusionBench's own are those of rescale="mean_of_means"."""

    method = "emr"


class FR(Algorithm):
    """FR-Merging."""

    method = "fr"


class FREE(Algorithm):
    """FREE-Merging, without a router: a task is set."""

    method = "free"


class TaskArithmetic(Algorithm):
    """Task arithmetic, with the arguments of FusionBench's."""

    method = "task_arithmetic"

    def translated(self, scaling_factor: float = 1.0, **parameters: Any) -> dict[str, Any]:
        return {"scale": scaling_factor, **parameters}


class TIES(Algorithm):
    """TIES-Merging, with the arguments of FusionBench's: trimmed over the whole model, signs by an unweighted vote.

    Exactly int(threshold · n) elements of each task vector are kept, of equal magnitudes the first; FusionBench keeps
    one more, and all that equal it. Where the vote is even and not of zeros alone, the sign is + (FusionBench: the
    sign that most elements of the model have).
    """

    method = "ties"

    def translated(
        self,
        scaling_factor: float = 1.0,
        threshold: float = 20,
        remove_keys: Sequence[str] = (),
        merge_func: str = "sum",
        **parameters: Any,
    ) -> dict[str, Any]:
        known = get_args(methods.get("ties").model_fields["merge"].annotation)
        if merge_func not in known:
            raise InputError(f"merge_func: is {merge_func!r}; expected {', '.join(known)}")
        density = threshold / 100 if threshold > 1 else threshold
        as_fusion_bench = {"scale": scaling_factor, "density": density, "merge": merge_func}
        return {**as_fusion_bench, "scope": "global", "vote": "unweighted", **parameters}

    def kept(self, names: Mapping[str, Any]) -> Sequence[str]:
        removed = [glob.escape(key) for key in self.arguments.get("remove_keys") or () if key in names]
        return [*self.task_specific, *removed]


def plain(value: Any) -> Any:
    """A value without OmegaConf's containers."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def register(algorithm: BaseAlgorithm, arguments: Mapping[str, Any]) -> None:
    """Let `algorithm.config` show arguments that its class does not name."""
    names = {f"argument_{name}": name for name in arguments}
    algorithm._config_mapping = type(algorithm)._config_mapping | names
    for attribute, name in names.items():
        setattr(algorithm, attribute, arguments[name])
