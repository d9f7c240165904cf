"""fastmerge: merge fine-tuned checkpoints of one base model as fast as the hardware moves bytes.

Names are loaded when first used, so that importing fastmerge costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "ops": "fastmerge.ops",
    "errors": "fastmerge.errors",
    "FastmergeError": "fastmerge.errors:FastmergeError",
    "merge": "fastmerge.engine.merge:merge",
    "plan": "fastmerge.recipe.reading:plan",
    "run": "fastmerge.engine.run:run",
    "Recipe": "fastmerge.recipe.schema:Recipe",
    "task": "fastmerge.engine.task:task",
    "methods": "fastmerge.methods",
    "runtime": "fastmerge.runtime",
    "verify": "fastmerge.engine.verify:verify",
    "diff": "fastmerge.engine.diff:diff",
    "spectrum": "fastmerge.engine.spectrum:spectrum",
    "extract_lora": "fastmerge.engine.extract:extract_lora",
    "frank_wolfe": "fastmerge.fw.loop:frank_wolfe",
    "fw": "fastmerge.fw",
    "torch_ops": "fastmerge.bindings.torch_ops",
    "ada_merging": "fastmerge.informed.ada_merging:ada_merging",
    "fisher": "fastmerge.informed.fisher:fisher",
    "fisher_information": "fastmerge.informed.fisher_information:fisher_information",
    "regmean": "fastmerge.informed.regmean:regmean",
    "gram_matrices": "fastmerge.informed.gram_matrices:gram_matrices",
    "informed": "fastmerge.informed",
    "merge_state_dicts": "fastmerge.engine.state_dicts:merge_state_dicts",
}
__all__ = [*_HOMES]

if TYPE_CHECKING:
    from . import errors as errors
    from . import fw as fw
    from . import informed as informed
    from . import methods as methods
    from . import ops as ops
    from . import runtime as runtime
    from .bindings import torch_ops as torch_ops
    from .engine.diff import diff as diff
    from .engine.extract import extract_lora as extract_lora
    from .engine.merge import merge as merge
    from .engine.run import run as run
    from .engine.spectrum import spectrum as spectrum
    from .engine.state_dicts import merge_state_dicts as merge_state_dicts
    from .engine.task import task as task
    from .engine.verify import verify as verify
    from .errors import FastmergeError as FastmergeError
    from .fw.loop import frank_wolfe as frank_wolfe
    from .informed.ada_merging import ada_merging as ada_merging
    from .informed.fisher import fisher as fisher
    from .informed.fisher_information import fisher_information as fisher_information
    from .informed.gram_matrices import gram_matrices as gram_matrices
    from .informed.regmean import regmean as regmean
    from .recipe.reading import plan as plan
    from .recipe.schema import Recipe as Recipe


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastmerge' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = importlib.import_module(module)
    value = getattr(value, attribute) if attribute else value
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
