"""The plan of a merge: everything that can be known, and everything that can be wrong, before a weight is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import gpus
from ..errors import InputError, attempt, nearest
from ..formats.checkpoint import Checkpoint
from ..formats.expanded import stored_bytes
from ..formats.folder import encoded, set_dtype, to_json
from ..formats.hub import Missing
from ..formats.layout import FilePlan
from ..formats.models import Location, open_models
from ..formats.safetensors import LISTED, Header, TensorInfo
from ..forms import well_formed
from ..methods._declaration import Method, Pass, Statistics
from .destination import output_folder, output_problems
from .memory import portions_of
from .outputs import Output, delta_dtype, passes_on, plan_experts, plan_output
from .parameters import Override, Parameters, declare, pairs_of
from .preflight import Alignment, Rename, TensorPlan, align
from .vocabulary import VOCABS, Vocab, files_beside, rows_of, set_rows

if TYPE_CHECKING:
    import torch

DTYPE_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_MODELS = 64


@dataclass(frozen=True, slots=True, repr=False)
class MergePlan:
    """A merge that has passed preflight.

    `checkpoints` are all inputs, base first: base and the models, or what these are woven of. `beside`: files of the
    result that lie beside its weights in the place of the lead's, by name; None: there is none. `mergekit`: the
    configuration of mergekit's that the plan was made of.
    """

    outputs: tuple[Output, ...]
    base: Checkpoint | None
    models: tuple[Checkpoint, ...]
    sources: dict[str, str]
    alignment: Alignment
    out: Path | None
    overwrite: bool
    resume: bool
    hashes: bool
    task_specific: tuple[str, ...]
    rename: dict[str, Rename]
    dtype: str | None
    chunk: int
    lanes: int
    memory: int
    device: str
    notes: tuple[str, ...]
    checkpoints: tuple[Checkpoint, ...]
    beside: Mapping[str, bytes | None] = field(default_factory=dict)
    mergekit: Mapping[str, Any] | None = None
    vocab: Vocab = "error"

    def __repr__(self) -> str:
        return f"MergePlan({self.summary()})"

    @property
    def method(self) -> Method:
        return self.outputs[0].method

    @property
    def names(self) -> list[str]:
        return [model.label for model in self.models]

    @property
    def lead(self) -> Checkpoint:
        """The checkpoint whose names, order, configuration and tokenizer the output takes."""
        return self.base or self.models[0]

    @property
    def inputs(self) -> dict[str, Checkpoint]:
        """All inputs by their names, base first."""
        return {checkpoint.label: checkpoint for checkpoint in self.checkpoints}

    @property
    def missing(self) -> list[Missing]:
        """What is yet to be fetched from the Hub."""
        return list(dict.fromkeys(missing for checkpoint in self.checkpoints for missing in checkpoint.missing))

    def fetched(self) -> MergePlan:
        """The plan with all of its inputs on this disk."""
        base = None if self.base is None else self.base.fetched()
        models, checkpoints = (tuple(one.fetched() for one in own) for own in (self.models, self.checkpoints))
        return replace(self, base=base, models=models, checkpoints=checkpoints)

    @property
    def headers(self) -> list[Header]:
        """Those of all files that are read."""
        return [header for checkpoint in self.checkpoints for header in checkpoint.headers]

    @property
    def pass_count(self) -> int:
        return len(self.method.passes(self.names, self.alignment.wide))

    def passes(self, output: Output, tensor: TensorPlan) -> tuple[Pass, ...]:
        """The passes of an output over a tensor, with the parameters that hold there."""
        return passes_on(output.parameters, tensor, self.names, self.alignment)

    def knowing(self, statistics: Sequence[Sequence[Statistics]]) -> MergePlan:
        """The plan as each output's statistics of all passes but the last decide it: the sizes of experts."""
        outputs = tuple(
            replace(output, experts=plan_experts(output, self.alignment, self.names, self.dtype, found))
            for output, found in zip(self.outputs, statistics, strict=True)
        )
        return replace(self, outputs=outputs)

    def stored_dtype(self, tensor: TensorPlan) -> str:
        """What task vectors and experts are stored in: --dtype, bfloat16 for 16-bit tensors, else the tensor's own."""
        return self.dtype or delta_dtype(tensor.dtype)

    @property
    def parameters(self) -> int:
        return sum(tensor.numel for tensor in self.alignment.tensors)

    @property
    def bytes_read(self) -> int:
        """Bytes that all passes read."""
        merged = sum(
            stored_bytes(inputs(tensor, self.method)) * self._readings(tensor) for tensor in self.alignment.tensors
        )
        own = sum(stored_bytes([info]) for infos in self.alignment.task_specific.values() for info in infos)
        bases = sum(stored_bytes([info]) for info in self.alignment.base_specific)
        return (
            merged
            + own * sum(1 for output in self.outputs if output.heads)
            + bases * sum(1 for output in self.outputs if "merged" in output.layouts)
        )

    def _readings(self, tensor: TensorPlan) -> int:
        """How many passes have to do with a tensor."""
        if tensor.copy:
            return 1
        passes = zip(*(self.passes(output, tensor) for output in self.outputs), strict=True)
        return sum(1 for own in passes if not all(one.idle for one in own))

    @property
    def files(self) -> list[FilePlan]:
        """The files of weights that are written."""
        return [file for output in self.outputs for layout in output.all_layouts for file in layout.files]

    @property
    def bytes_written(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def shared_parameters(self) -> dict[str, Any]:
        """The parameters that all outputs have alike."""
        first, *others = (output.parameters.record()["params"] for output in self.outputs)
        return {name: value for name, value in first.items() if all(other[name] == value for other in others)}

    @property
    def differences(self) -> dict[str, dict[str, Any]]:
        """By output the parameters that not all have alike; empty for a single output."""
        shared = self.shared_parameters
        records = {output.name: output.parameters.record()["params"] for output in self.outputs if output.name}
        return {label: {n: v for n, v in own.items() if n not in shared} for label, own in records.items()}

    def summary(self) -> dict[str, Any]:
        """The plan as JSON."""
        return {
            "method": self.method.name,
            **self.outputs[0].parameters.record(),
            "params": self.shared_parameters,
            "outputs": self.differences,
            "base": self.sources.get("base"),
            "models": {name: self.sources[name] for name in self.inputs if name != "base"},
            "out": None if self.out is None else str(self.out),
            "tensors": len(self.alignment.tensors),
            "parameters": self.parameters,
            "passes": self.pass_count,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "fetches": {missing.repo: missing.nbytes for missing in self.missing},
            "memory": self.memory,
            "files": [file.name for file in self.files],
            "task_specific": {k: [t.name for t in v] for k, v in self.alignment.task_specific.items() if v},
            "notes": list(self.notes),
        }


def inputs(tensor: TensorPlan, method: Method) -> list[TensorInfo]:
    """The stored tensors that are read to merge this one: base first, if the method or a comparison needs it."""
    return ([tensor.base] if tensor.base and (method.uses_base or tensor.copy) else []) + list(tensor.models)


@well_formed
def plan(
    method: str | Method,
    base: Location | None = None,
    models: Mapping[str, Location] | Iterable[tuple[str, Location]] = (),
    out: str | Path | None = None,
    params: Mapping[str, Any] | None = None,
    *,
    tensors: Sequence[Override] = (),
    outputs: Mapping[str, Mapping[str, Any]] | None = None,
    task_specific: Sequence[str] = (),
    rename: Mapping[str, Rename] | None = None,
    vocab: Vocab = "error",
    dtype: str | torch.dtype | None = None,
    memory: str | int = "1GiB",
    device: str | torch.device = "auto",
    overwrite: bool = False,
    resume: bool = False,
    hashes: bool = False,
) -> MergePlan:
    """Check a merge of checkpoints on disk and lay out its result; reads headers only.

    Arguments are those of `fastmerge.merge`; base and models may be checkpoints that are open, too. Raises InputError
    with every problem found.
    """
    problems: list[str] = []
    pairs = pairs_of(models, "models", "{name: folder, …}")
    dtype, device = spelled(dtype, device)
    names = [name for name, _ in pairs]
    problems += name_problems(names, rename or {})
    declared: dict[str, Parameters] = {}
    wrong: dict[str, list[str]] = {}  # by output
    for name, changes in (outputs or {"": {}}).items():
        wrong[name] = []
        built = attempt(wrong[name], partial(declare, method, params or {}, changes, tensors, names, name))
        declared |= {} if built is None else {name: built}
    problems += _output_name_problems(outputs or {})
    if base is None and any(one.method.uses_base for one in declared.values()):
        problems.append(f"{next(iter(declared.values())).method.name} needs a base model; pass --base")
    if vocab not in VOCABS:
        problems.append(f"unknown vocab {vocab!r}{nearest(vocab, VOCABS)}; there are {', '.join(VOCABS)}")
    problems += option_problems(dtype, memory, device)
    lead, opened = open_models(base, pairs, problems, fetch=False)
    alignment = None
    complete = [checkpoint for checkpoint in opened if checkpoint is not None]
    if complete and len(complete) == len(opened) and (base is None or lead is not None):
        alignment = attempt(
            problems, lambda: align(lead, complete, task_specific=task_specific, rename=rename, vocab=vocab)
        )
    merged = None if alignment is None else [tensor.name for tensor in alignment.tensors if not tensor.copy]
    for name, one in declared.items():
        if alignment is not None and merged is not None:
            wrong[name] += one.settle(merged, alignment.tied)
        elif names:  # that there are none is said already
            wrong[name] += one.method.problems(names)
    problems += _told_apart(wrong)
    given = [path for c in (lead, *opened) if c is not None for path in c.places]
    if problems or alignment is None:
        raise InputError([*problems, *place_problems(out, given, overwrite=overwrite, resume=resume)])

    merging = [tensor.subject for tensor in alignment.tensors if not tensor.copy]
    code, budget = DTYPE_NAMES[dtype] if dtype else None, parse_bytes(memory)
    remarks = {name: one.method.remarks([(s, one.of(s.name)) for s in merging]) for name, one in declared.items()}
    problems += _told_apart({name: own.problems for name, own in remarks.items()})
    notes = _told_apart({name: own.notes for name, own in remarks.items()})
    planned = tuple(
        plan_output(name, parameters, alignment, lead or complete[0], names, code)
        for name, parameters in declared.items()
    )
    notes += _left_out(planned, alignment)
    problems += (uneven := _reading_problems(planned, names, alignment))
    problems += _vocabulary_problems(planned, alignment, lead)
    if lead is not None and not lead.path.exists() and any("unified" in output.layouts for output in planned):
        problems.append(
            f"base: tasks are made from a base on disk, and {lead.place} is none; merge it into a folder first "
            "(fastmerge merge linear --model NAME=MODEL+ADAPTER)"
        )
    chunk, lanes = (0, 0) if uneven else portions_of(planned, alignment, names, budget, problems)
    total = sum(layout.total_bytes for output in planned for layout in output.all_layouts)
    problems += place_problems(out, given, total, overwrite=overwrite, resume=resume)
    if problems:
        raise InputError(problems)
    sources = {checkpoint.label: checkpoint.place for checkpoint in (lead, *complete) if checkpoint}
    return MergePlan(
        planned,
        lead,
        tuple(complete),
        sources,
        alignment,
        None if out is None else output_folder(out),
        overwrite,
        resume,
        hashes,
        tuple(task_specific),
        dict(rename or {}),
        code,
        chunk,
        lanes,
        budget,
        device,
        (*alignment.notes, *notes),
        tuple(c for c in (lead, *complete) if c),
        _beside(alignment, lead or complete[0], dtype),
        vocab=vocab,
    )


def spelled(dtype: str | torch.dtype | None, device: str | torch.device) -> tuple[str | None, str]:
    """A dtype and a device as the command line spells them; torch's own are taken too."""
    return None if dtype is None else str(dtype).removeprefix("torch."), str(device)


def option_problems(dtype: str | torch.dtype | None, memory: str | int, device: str | torch.device) -> list[str]:
    """What is wrong with options, whatever is merged."""
    dtype, device = spelled(dtype, device)
    problems = gpus.problems(device)
    if dtype and dtype not in DTYPE_NAMES:
        problems.append(f"unknown dtype {dtype!r}{nearest(dtype, DTYPE_NAMES)}; there are {', '.join(DTYPE_NAMES)}")
    attempt(problems, lambda: parse_bytes(memory))
    return problems


def place_problems(
    out: str | Path | None,
    inputs: Sequence[Path] = (),
    total: int = 0,
    *,
    overwrite: bool = False,
    resume: bool = False,
) -> list[str]:
    """What keeps `total` bytes from being written to `out`."""
    problems: list[str] = []
    destination = None if out is None else attempt(problems, partial(output_folder, out))
    if destination is not None:
        problems += output_problems(destination, total, inputs, overwrite=overwrite, resume=resume)
    return problems


def parse_bytes(text: str | int) -> int:
    """ "8GiB", "500MB" or a number as bytes."""
    match = re.fullmatch(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([A-Za-z]*)\s*", str(text))
    if not match or match[2].upper() not in UNITS:
        raise InputError(f"memory {text!r}: expected a size such as 8GiB or 500MB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def name_problems(names: Sequence[str], rename: Mapping[str, Rename]) -> list[str]:
    """What is wrong with the names of models, and with those in --rename."""
    problems = []
    if not 1 <= len(names) <= MAX_MODELS:
        problems.append(f"1 to {MAX_MODELS} models can be merged, these are {len(names)}; pass --model NAME=FOLDER")
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            problems.append(f"{names.count(name)} models are called {name!r}; give each a name of its own")
        if not MODEL_NAME.fullmatch(name) or name == "base":
            problems.append(f"model name {name!r}: expected letters, digits, '.', '_' and '-', and not 'base'")
    problems += [f"--rename {n}: there is no model {n!r}{nearest(n, names)}" for n in rename if n not in names]
    return problems


def _output_name_problems(outputs: Mapping[str, Any]) -> list[str]:
    wrong = [name for name in outputs if not MODEL_NAME.fullmatch(name)]
    return [f"output name {name!r}: expected letters, digits, '.', '_' and '-'" for name in wrong]


def _told_apart(wrong: Mapping[str, Sequence[str]]) -> list[str]:
    """What is wrong with outputs: with all of them once, else with the output's name."""
    common = set.intersection(*map(set, wrong.values()))
    named = {name: f"outputs.{name}" for name in wrong}
    return list(
        dict.fromkeys(
            text if text in common or text.startswith(named[name]) else f"{named[name]}: {text}"
            for name, texts in wrong.items()
            for text in texts
        )
    )


def _left_out(outputs: Sequence[Output], alignment: Alignment) -> list[str]:
    """A note of single tasks' tensors where outputs keep no tasks apart, and base has none in their place."""
    kept = {info.name for info in alignment.base_specific}
    lost = [f"{k}'s {t.name}" for k, own in alignment.task_specific.items() for t in own if t.name not in kept]
    if not lost or any(output.heads for output in outputs):
        return []
    more = f", … and {len(lost) - LISTED} more" if len(lost) > LISTED else ""
    return [f"{len(lost)} task-specific tensors are left out ({', '.join(lost[:LISTED])}{more})"]


def _vocabulary_problems(outputs: Sequence[Output], alignment: Alignment, base: Checkpoint | None) -> list[str]:
    """What is stored against base cannot have rows that base lacks."""
    found = alignment.vocabulary
    if found is None or base is None or found.rows == rows_of(base):
        return []
    return [
        f"{output.method.name}: task vectors are stored against base, which has fewer rows than vocab pad asks for; "
        "pass --vocab base"
        for output in outputs
        if "unified" in output.layouts
    ]


def _beside(alignment: Alignment, lead: Checkpoint, dtype: str | None) -> dict[str, bytes | None]:
    """Configuration and tokenizer of a result whose vocabulary is not its lead's."""
    found = alignment.vocabulary
    if found is None or found.rows == rows_of(lead):
        return {}
    config = set_rows(lead.config, found.rows)
    content = encoded(to_json(set_dtype(config, dtype) if dtype else config))
    return files_beside(found, lead) | ({"config.json": content} if config else {})


def _reading_problems(outputs: Sequence[Output], names: Sequence[str], alignment: Alignment) -> list[str]:
    """All outputs come from the same readings."""
    counts = {output.name: len(output.method.passes(names, alignment.wide)) for output in outputs}
    if len(set(counts.values())) == 1:
        return []
    readings = ", ".join(f"{name} {count}" for name, count in counts.items())
    return [f"outputs need different numbers of readings ({readings}); merge them apart"]
