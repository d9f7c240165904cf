"""A recipe carried out: model and texts loaded, a run with a checkpoint after every step, a folder written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..engine.report import Report
from ..errors import InputError, attempt
from ..formats.checkpoint import Checkpoint, open_checkpoint, places
from ..formats.models import open_model
from ..recipe.destination import output_folder, output_problems
from ..runtime.huggingface import from_folder
from ..runtime.load import find_device
from ..runtime.texts import tokenizer_of
from . import objectives
from .loop import Callback, frank_wolfe
from .objective import LossFn
from .recipe import Recipe, unknown_parameters
from .result import Result
from .settings import Settings
from .texts import Sample, batches, read_samples


def checkpoint_of(out: Path) -> Path:
    """Where a run that is to become the folder `out` keeps what it needs to go on."""
    out = out.expanduser().resolve()
    return out.with_name(f".{out.name}.frank_wolfe.json")


def run(
    recipe: Recipe | str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    callback: Callback | None = None,
) -> tuple[Result, Report]:
    """Carry out a recipe; its model is written to the folder `out`.

    The model computes in eval mode. What is wrong with recipe, files, pool and output is an InputError before any work.
    A run that was stopped is gone on with by `resume`.
    """
    recipe, out, settings, opened, samples = checked(recipe, out, overwrite)
    opened = opened.fetched()
    tokenizer, device = tokenizer_of(opened.path), find_device(recipe.device)
    model = from_folder(opened.path).to(device).eval()
    file = checkpoint_of(out)
    result = frank_wolfe(
        model,
        {name: recipe.located(path) for name, path in recipe.pool.items()},
        {task: _loss(entry.loss or recipe.loss) for task, entry in recipe.data.items()},
        {
            task: batches(Path(entry.path), samples[task], tokenizer, recipe.batch_size, recipe.max_length)
            for task, entry in recipe.data.items()
        },
        **settings,
        init=opened.path,
        task_weights={task: entry.weight for task, entry in recipe.data.items()},
        skip_misfits=recipe.skip_misfits,
        checkpoint=file,
        resume=resume,
        callback=callback,
    )
    report = result.write(out, overwrite=overwrite)
    file.unlink()
    return result, report


def checked(
    recipe: Recipe | str | Path, out: str | Path, overwrite: bool
) -> tuple[Recipe, Path, dict[str, Any], Checkpoint, dict[str, list[Sample]]]:
    """The recipe, the folder to write, parameters, the model and the texts of each task; InputError with all that is
    wrong, but for what only the loaded model tells."""
    problems: list[str] = []
    read = recipe if isinstance(recipe, Recipe) else attempt(problems, lambda: Recipe.read(recipe))
    destination = attempt(problems, lambda: output_folder(out))
    if read is None:
        problems += [] if destination is None else output_problems(destination, 0, [], overwrite=overwrite)
        raise InputError(problems)
    settings = attempt(problems, lambda: _settings(read.parameters))
    opened = attempt(problems, lambda: open_checkpoint(read.located(read.model), "model", fetch=False))
    misfits: list[str] = []
    for name, path in ({} if read.skip_misfits else read.pool).items():
        attempt(misfits, lambda name=name, path=path: open_model(read.located(path), name, fetch=False))  # type: ignore[misc]
    problems += [*misfits, "skip_misfits: true leaves out what cannot be opened"] if misfits else []
    attempt(problems, lambda: find_device(read.device))
    samples: dict[str, list[Sample]] = {}
    for task in read.data:
        samples[task] = attempt(problems, lambda task=task: _samples(read, task, opened)) or []  # type: ignore[misc]
    if destination is not None:
        problems += _output_problems(read, opened, destination, overwrite)
    if problems or settings is None or opened is None or destination is None:
        raise InputError(problems)
    return read, destination, settings, opened, samples


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as `frank_wolfe` takes them, looked at."""
    problems = unknown_parameters(given, [field.name for field in fields(Settings)])
    if problems:
        raise InputError(problems)
    attempt(problems, lambda: Settings(**given))
    if problems:
        raise InputError(f"parameters.{problem}" for problem in problems)
    return dict(given)


def _samples(recipe: Recipe, task: str, opened: Checkpoint | None) -> list[Sample]:
    entry = recipe.data[task]
    loss, labels = entry.loss or recipe.loss, _labels(opened.config if opened else {})
    return read_samples(Path(recipe.located(entry.path)), loss, labels)[: recipe.samples]


def _labels(config: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of a model's labels; without a word of them, the two that transformers gives it."""
    named = config.get("id2label")
    if not isinstance(named, dict) or not all(str(number).isdecimal() for number in named):
        return {"LABEL_0": 0, "LABEL_1": 1}
    return {str(label): int(number) for number, label in named.items()}


def _output_problems(recipe: Recipe, opened: Checkpoint | None, out: Path, overwrite: bool) -> list[str]:
    inputs = [Path(recipe.located(path)) for path in (recipe.model, *recipe.pool.values())]
    total = sum(header.size for header in opened.headers) if opened else 0
    kept = [place for path in inputs if path.exists() for place in places(path)]
    return output_problems(out, total, [*kept, *recipe.own_files], overwrite=overwrite)


def _loss(name: str) -> LossFn:
    found: LossFn = getattr(objectives, name)
    return found
