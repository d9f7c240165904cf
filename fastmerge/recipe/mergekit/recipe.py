"""A configuration of mergekit's as a plan."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ...errors import InputError, attempt
from ...formats.checkpoint import Checkpoint
from ...formats.gathered import Gathered
from ...formats.models import open_models
from ...formats.spec import ModelSpec, parse_spec
from ..destination import output_folder, overwritten
from ..merge_plan import MergePlan
from ..options import option_problems, place_problems
from ..plan import plan
from ..preflight import align
from ..schema import own_problems
from .config import KEY, MergekitConfig
from .dtypes import promoted
from .folder import files_beside
from .methods import MergekitMethod, find
from .values import parameters_of, scope_problems
from .vocabulary import Vocabulary, aligned, vocabulary
from .weave import Weave, weave

if TYPE_CHECKING:
    import torch

WORDS = (
    (r"^tensors\[\d+\](\.|: )", ""),
    (r"; pass --rename .*$", "; which a recipe of fastmerge's can say (rename)"),
    (r"; if it belongs to the task alone, pass --task-specific .*$", ""),
    (r"(its vocabulary was resized);.*$", r"\1; say how tokens are matched: tokenizer: {source: union}"),
)
BUFFER = ".rotary_emb.inv_freq"


def is_mergekit(content: Mapping[str, Any]) -> bool:
    """Whether a mapping is a configuration of mergekit's, and no recipe."""
    return KEY in content


class MergekitRecipe:
    """A configuration of mergekit's. Raises InputError with every problem, each with its path.

    Models are looked for from the working directory on, as mergekit does, then from the configuration's file on.
    """

    def __init__(self, content: Mapping[str, Any], file: Path | None = None, text: str | None = None) -> None:
        self.content = dict(content)
        self.file = file
        self.text = yaml.safe_dump(self.content, sort_keys=False) if text is None else text
        self.config = MergekitConfig(**self.content)
        self.labels = labels_of(self.config.references())
        problems: list[str] = []
        method = attempt(problems, lambda: find(self.config.merge_method))
        if method is not None:
            problems += scope_problems(self.config, method)
        if problems or method is None:
            attempt(problems, lambda: self._opened({}))
            raise InputError(problems)
        self.method: MergekitMethod = method

    @classmethod
    def of(cls, content: Mapping[str, Any], file: Path) -> MergekitRecipe:
        """The configuration that was read from a file."""
        try:
            return cls(content, file, file.read_text(encoding="utf-8"))
        except InputError as error:
            raise InputError(f"{file}: {problem}" for problem in error.problems) from None

    def plan(
        self,
        out: str | Path | None = None,
        *,
        dtype: str | torch.dtype | None = None,
        memory: str | int | None = None,
        device: str | torch.device = "auto",
        overwrite: bool = False,
        resume: bool = False,
        hashes: bool = False,
        places: Mapping[str, str | Path] | None = None,
    ) -> MergePlan:
        """Check the configuration against the checkpoints, and lay out the result.

        dtype goes before the configuration's; `places` are where models are now, by the names of the record.
        """
        problems = [] if out is None else own_problems(self.file, out)
        opened = attempt(problems, lambda: self._opened(places or {}))
        if opened is not None and out is not None and not problems:
            inputs = [path for checkpoint in opened.values() for path in checkpoint.places]
            with suppress(OSError, RuntimeError):  # of a place that cannot be looked at, which is told below
                problems += overwritten(output_folder(out), inputs)
        if problems or opened is None:
            problems += option_problems(dtype, memory or 0, device)
            raise InputError([*problems, *place_problems(out, overwrite=overwrite, resume=resume)])
        try:
            woven = weave(self.config, self.method, opened)
            words = vocabulary(self.config, opened)
            woven = woven if words is None else aligned(woven, words, self.config)
            chosen = dtype or self.config.out_dtype or self.config.dtype or promoted(woven)
            merged = [tensor.name for tensor in align(woven.base, woven.models).merged]
            labels = [model.label for model in woven.models]
            params, overrides = parameters_of(self.method, labels, woven.places, merged)
            prepared = plan(
                self.method.ours,
                woven.base,
                [(model.label, model) for model in woven.models],
                out,
                params,
                tensors=overrides,
                dtype=chosen,
                memory=memory or "1GiB",
                device=device,
                overwrite=overwrite,
                resume=resume,
                hashes=hashes,
            )
        except InputError as error:
            raise InputError(dict.fromkeys(map(_in_our_words, error.problems))) from None
        needs_base = any(set(output.layouts) != {"merged"} or output.experts for output in prepared.outputs)
        if needs_base and (self.config.models is None or _regathered(prepared)):
            name = self.config.merge_method
            raise InputError(f"merge_method: {name} needs base for its tasks as it is, without slices and other tokens")
        return self._finished(prepared, woven, words, opened)

    def _opened(self, places: Mapping[str, str | Path]) -> dict[str, Checkpoint]:
        """All models by the names that the configuration calls them; adapters alone are those of base."""
        problems: list[str] = []
        base = self.config.base_model
        where = {name: places.get(label) or self._located(name) for name, label in self.labels.items()}
        if base is not None and "base" in places:
            where[base] = places["base"]
        others = [(label, where[name]) for name, label in self.labels.items() if name != base]
        lead, models = open_models(None if base is None else where[base], others, problems, fetch=False)
        if problems:
            raise InputError(problems)
        found = {} if lead is None else {"base": replace(lead, label=self.labels[base or ""])}
        found |= {model.label: model for model in models if model is not None}
        return {name: _learned(found["base" if name == base else label]) for name, label in self.labels.items()}

    def _located(self, name: str) -> str:
        """A model's place: from the working directory on, else from the configuration's file on."""

        def located(place: str) -> str:
            beside = place if self.file is None else str(self.file.parent / place)
            return beside if Path(beside).exists() and not Path(place).expanduser().exists() else place

        spec = parse_spec(name)
        return str(ModelSpec(located(spec.model), spec.adapter and located(spec.adapter)))

    def _finished(
        self, prepared: MergePlan, woven: Weave, words: Vocabulary | None, opened: Mapping[str, Checkpoint]
    ) -> MergePlan:
        """The plan, knowing the files that it reads, and what lies beside its weights."""
        beside = files_beside(self.config, self.text, woven, words, prepared, opened)
        plan = replace(prepared, beside=beside, mergekit=self.content)
        if self.config.models is not None:
            return plan
        apart = self.config.base_model if woven.base is not None else None
        stretches = [place.stretch for place in woven.places.values()]
        used = {strand.model for own in stretches for strand in (own.base, *own.strands) if strand is not None}
        read = {"base" if name == apart else self.labels[name]: own for name, own in opened.items() if name in used}
        checkpoints = tuple(replace(checkpoint, label=label) for label, checkpoint in read.items())
        return replace(plan, checkpoints=checkpoints, sources={c.label: c.place for c in checkpoints})


def _regathered(plan: MergePlan) -> bool:
    """Whether base's embeddings have other rows than on disk."""
    return any(isinstance(tensor.base, Gathered) for tensor in plan.alignment.tensors)


def _learned(model: Checkpoint) -> Checkpoint:
    """A model without what is computed anew of its configuration, which some versions stored and others did not."""
    kept = {name: info for name, info in model.tensors.items() if not name.endswith(BUFFER)}
    left = len(model.tensors) - len(kept)
    note = f"{model.label}: {left} tensors *{BUFFER} are left out; they are computed of the configuration"
    return replace(model, tensors=kept, notes=(*model.notes, note)) if left else model


def labels_of(references: Sequence[str]) -> dict[str, str]:
    """A short name for every model, of the end of its path."""
    found: dict[str, str] = {}
    for reference in references:
        last = re.sub(r"[^A-Za-z0-9._-]+", "-", reference.rstrip("/").rpartition("/")[2]).lstrip("._-")[:80] or "model"
        label, number = last, 2
        while label in found.values() or label == "base":
            label, number = f"{last}-{number}", number + 1
        found[reference] = label
    return found


def _in_our_words(problem: str) -> str:
    """What to do about a problem, said of a configuration and not of the command line."""
    for theirs, ours in WORDS:
        problem = re.sub(theirs, ours, problem)
    return problem
