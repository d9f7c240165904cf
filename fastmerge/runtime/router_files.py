"""The router of a folder of tasks, trained and evaluated on files of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError, attempt
from ..formats.contents import need_tasks
from ..forms import well_formed
from .evaluation import Evaluation, evaluate
from .router import Router, held_out, share_problems
from .samples import Samples, read_samples
from .texts import prepared, text_features

File = str | Path | None


class Trained(NamedTuple):
    """`held_out` is the evaluation on the samples that were kept back, None where none were."""

    router: Router
    held_out: Evaluation | None


@well_formed
def train_router(
    folder: str | Path,
    data: File = None,
    features: File = None,
    *,
    validation: float = 0.2,
    seed: int = 0,
    **model: Any,
) -> Trained:
    """Train a router on samples of all tasks of an EMR artefact or a folder of experts, and write it there.

    data: JSONL of texts and labels; features: safetensors (samples.py tells both). Without features they are those of
    the folder's model (`text_features`, which `model` options are for). `validation` of each task's samples, chosen by
    `seed`, are kept back. Raises InputError with every problem of the files.
    """
    tasks, problems = need_tasks(Path(folder).expanduser()), share_problems(validation)
    samples = attempt(problems, lambda: read_samples(tasks, data, features))
    missing = [] if samples is None else [task for task in tasks if task not in samples.labels]
    if missing:
        problems.append(f"{data or features}: there are no samples of {', '.join(missing)}; add some for every task")
    if features is None and data is not None:
        attempt(problems, lambda: prepared(folder, **model))
    if problems or samples is None:
        raise InputError(problems)
    x = _features(folder, samples, model)
    router = Router.fit(x, samples.labels, tasks, validation=validation, seed=seed)
    kept = held_out(torch.tensor([tasks.index(label) for label in samples.labels]), len(tasks), validation, seed)
    labels = [label for label, own in zip(samples.labels, kept.tolist(), strict=True) if own]
    evaluation = evaluate(router, x[kept], labels) if labels else None
    router.save(folder)
    return Trained(router, evaluation)


@well_formed
def evaluate_router(folder: str | Path, data: File = None, features: File = None, **model: Any) -> Evaluation:
    """Let the router of a folder choose for samples; arguments and errors as for `train_router`."""
    problems: list[str] = []
    tasks = need_tasks(Path(folder).expanduser())
    router = attempt(problems, lambda: Router.load(folder))
    width = None if router is None else router.width
    samples = attempt(problems, lambda: read_samples(tasks, data, features, width=width))
    if features is None and data is not None:
        attempt(problems, lambda: prepared(folder, **model))
    if problems or router is None or samples is None:
        raise InputError(problems)
    return evaluate(router, _features(folder, samples, model), samples.labels)


def _features(folder: str | Path, samples: Samples, model: dict[str, Any]) -> Tensor:
    if samples.features is not None:
        return samples.features
    assert samples.texts is not None
    return text_features(folder, samples.texts, **model)
