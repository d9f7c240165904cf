"""A recipe: a whole merge as data, from a YAML file or from Python.

A later entry wins, in this order: `parameters`, each model's own, those of an output, and `tensors` from first to last.
A number may be a gradient over the depth of layers ({layers: […]}, see layers.py) wherever the parameter may differ
between tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError

from ..errors import InputError, attempt, nearest
from ..formats.models import open_models
from ..formats.spec import parse_spec
from ..forms import well_formed
from ..methods import build, get, problem
from ..methods._declaration import Method
from ..methods._faults import Fault, faults
from .destination import output_folder, overwritten
from .layers import at_depth
from .merge_plan import MergePlan
from .parameters import (
    Override,
    changed,
    fixed_problems,
    plain,
    section_problems,
    singular,
    spread,
    value_faults,
)
from .plan import plan
from .vocabulary import Vocab
from .yaml_file import read_yaml

if TYPE_CHECKING:
    import torch

WORDS = (
    (r"pass --task-specific (.+)$", r"put \1 in task_specific"),
    (r"pass --rename ([^:]+):([^=]*)=(.*)$", r'give models.\1 rename: {"\2": "\3"}'),
    (r"--task-specific", "task_specific"),
    (r"--rename", "rename"),
    (r"--vocab (\w+)", r"vocab: \1"),
    (r"; pass --base", "; give base"),
)
Section = dict[str, Any]  # parameters of the method, checked against it


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _located(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _entry(value: Any) -> Any:
    if isinstance(value, (str, Path)):
        return {"path": str(value)}
    if isinstance(value, (Mapping, ModelEntry)):
        return value
    raise ValueError("it should be a path, or a mapping with a path")


Location = Annotated[str, BeforeValidator(_located)]
Texts = Annotated[list[str], BeforeValidator(_listed, json_schema_input_type=str | list[str])]


class ModelEntry(BaseModel):
    """A model to merge: its path alone, or with settings of its own (`parameters`: what belongs to the method)."""

    model_config = ConfigDict(extra="allow", frozen=True)

    path: Location = Field(
        description="folder (relative to the recipe), .safetensors file, or Hub name; an adapter's; MODEL+ADAPTER"
    )
    rename: dict[str, str] = Field(default={}, description="prefixes of its tensor names to replace, old: new")

    @property
    def parameters(self) -> Section:
        return self.model_extra or {}


class TensorsEntry(BaseModel):
    """Parameters for the tensors that a pattern matches."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    match: Texts = Field(description="a pattern of tensor names, or several; * is any text", min_length=1)
    parameters: Section = Field(default={}, description="of the method")
    models: dict[str, Section] = Field(default={}, description="by model's name, parameters of single models")


class Recipe(BaseModel):
    """A merge as data. Raises InputError with every problem, each with its path. Folders are relative to the recipe's
    file, or to the working directory where there is no file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field(description="ties, linear, …; fastmerge methods lists them")
    base: Location | None = Field(
        default=None, description="the pre-trained model: a folder, a .safetensors file, or a Hub name"
    )
    models: dict[str, Annotated[ModelEntry, BeforeValidator(_entry, json_schema_input_type=str | ModelEntry)]] = Field(
        description="the models to merge, in order, by the names they get", min_length=1
    )
    parameters: Section = Field(default={}, description="of the method")
    tensors: list[TensorsEntry] = Field(default=[], description="parameters for some tensors; later entries win")
    outputs: dict[str, Section] = Field(
        default={},
        description="several results of one reading, each a folder of its own, and the parameters they change",
    )
    task_specific: Texts = Field(default=[], description="patterns of tensors kept per task, such as classifier.*")
    vocab: Vocab = Field(
        default="error", description="embeddings of different lengths: an error, base's rows are kept, or all are (pad)"
    )
    dtype: Literal["bfloat16", "float16", "float32", "float64"] | None = Field(
        default=None, description="of the result; base's by default"
    )
    memory: str | int = Field(default="1GiB", description="bound of the buffers")
    seed: int | None = Field(default=None, description="of methods that draw at random; short for their parameter")

    _file: Path | None = PrivateAttr(None)

    def __init__(self, /, **content: Any) -> None:
        if "merge_method" in content:
            raise InputError(
                "merge_method: this is a configuration of mergekit's, and no recipe; fastmerge.run and fastmerge.plan "
                "take both"
            )
        content = {key: value for key, value in content.items() if value is not None}  # `parameters:` with nothing
        problems = list(_parameter_problems(content))
        try:
            super().__init__(**content)
        except ValidationError as error:
            problems = [_structural(fault) for fault in faults(error, content)] + problems
        if problems:
            raise InputError(problems)

    @classmethod
    @well_formed
    def read(cls, file: str | Path) -> Recipe:
        """The recipe in a YAML (or JSON) file."""
        file = Path(file).expanduser()
        return cls.of(read_yaml(file), file)

    @classmethod
    def of(cls, content: Mapping[str, Any], file: Path) -> Recipe:
        """The recipe that was read from a file; where it is not sound, what is wrong with its folders is told too."""
        try:
            recipe = cls(**content)
        except InputError as error:
            problems = [f"{file}: {problem}" for problem in error.problems]
            attempt(problems, lambda: open_models(*_places(content, file), problems, fetch=False))
            raise InputError(map(_in_our_words, problems)) from None
        recipe._file = file
        return recipe

    @well_formed
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
    ) -> MergePlan:
        """Check the recipe against the checkpoints, and lay out the result. dtype and memory go before the recipe's.

        Raises InputError with every problem, said as the recipe would be mended.
        """
        problems = [] if out is None else own_problems(self._file, out)
        options = dtype or self.dtype, memory or self.memory, device, overwrite, resume, hashes
        planned = attempt(problems, lambda: self._planned(out, *options))
        if problems or planned is None:
            raise InputError(map(_in_our_words, problems))
        return planned

    def _planned(
        self,
        out: str | Path | None,
        dtype: str | torch.dtype | None,
        memory: str | int,
        device: str | torch.device,
        overwrite: bool,
        resume: bool,
        hashes: bool,
    ) -> MergePlan:
        declared, names = get(self.method), list(self.models)
        own = {name: _by_field(declared, name, entry.parameters) for name, entry in self.models.items()}
        params = self.parameters | ({} if self.seed is None else {"seed": self.seed})
        for changes in own.values():
            params = changed(declared, params, changes, names)
        return plan(
            self.method,
            None if self.base is None else self._path(self.base),
            {name: self._path(entry.path) for name, entry in self.models.items()},
            out,
            params,
            tensors=[self._override(declared, entry) for entry in self.tensors],
            outputs=self.outputs,
            task_specific=self.task_specific,
            rename={name: list(entry.rename.items()) for name, entry in self.models.items() if entry.rename},
            vocab=self.vocab,
            dtype=dtype,
            memory=memory,
            device=device,
            overwrite=overwrite,
            resume=resume,
            hashes=hashes,
        )

    def _override(self, declared: type[Method], entry: TensorsEntry) -> Override:
        """What an entry of `tensors` changes: its parameters, then those of single models."""
        values = dict(entry.parameters)
        for name, own in entry.models.items():
            for parameter, mapping in _by_field(declared, name, own).items():
                before = spread(values[parameter], list(self.models)) if parameter in values else {}
                values[parameter] = before | mapping
        return entry.match, values

    def _path(self, path: str) -> str:
        """A path relative to the recipe's file; a Hub name stays what it is."""
        return path if self._file is None else _relative(path, self._file.parent)


def _places(content: Mapping[str, Any], file: Path) -> tuple[str | None, list[tuple[str, str]]]:
    """The base and the models that are named in what may be no recipe, relative to its file."""

    def located(path: Any) -> str | None:
        return _relative(path, file.parent) if isinstance(path, str) else None

    found = {name: _mapping(entry).get("path", entry) for name, entry in _mapping(content.get("models")).items()}
    models = [(name, place) for name, path in found.items() if (place := located(path)) is not None]
    return located(content.get("base")), models


def _relative(path: str, folder: Path) -> str:
    """A path relative to a folder; a Hub name stays what it is."""
    return str(parse_spec(path, folder).relative_to(folder))


def own_problems(file: Path | None, out: str | Path) -> list[str]:
    """Whether the folder `out` would take the recipe itself with it."""
    return [] if file is None else overwritten(output_folder(out), [file])


def _by_field(declared: type[Method], model: str, own: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A model's own values as the method's parameters have them: weight 0.3 of m is weights {m: 0.3}."""
    return {singular(declared)[name]: {model: value} for name, value in own.items()}


def _in_our_words(problem: str) -> str:
    """What to do about a problem, said of a recipe and not of the command line."""
    for theirs, ours in WORDS:
        problem = re.sub(theirs, ours, problem)
    return problem


def _structural(fault: Fault) -> str:
    """A fault in what is not the method's."""
    known = TensorsEntry if fault.path[0] == "tensors" and len(fault.path) > 1 else Recipe
    if fault.kind == "unknown":
        name, names = str(fault.path[-1]), list(known.model_fields)
        return f"{fault.place}: there is no {name!r} here{nearest(name, names)}; there are {', '.join(names)}"
    return f"{fault.place} {'is needed' if fault.kind == 'missing' else fault.text}"


def _parameter_problems(content: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the parameters, wherever they are given; parts that are no recipe at all are left out."""
    if not isinstance(content.get("method"), str):
        return
    try:
        declared = get(content["method"])
    except InputError as error:
        yield from (f"method: {problem}" for problem in error.problems)
        return
    checks = _Checks.of(declared, content)
    yield from checks.section(content.get("parameters"), "parameters")
    for name, entry in _mapping(content.get("models")).items():
        own = {key: value for key, value in _mapping(entry).items() if key not in ModelEntry.model_fields}
        yield from checks.model(own, f"models.{name}", list(ModelEntry.model_fields))
    for name, values in _mapping(content.get("outputs")).items():
        yield from checks.section(values, f"outputs.{name}")
    tensors = content.get("tensors")
    for i, entry in enumerate(tensors if isinstance(tensors, (list, tuple)) else ()):
        yield from checks.section(_mapping(entry).get("parameters"), f"tensors[{i}].parameters", some_tensors=True)
        for name, own in _mapping(_mapping(entry).get("models")).items():
            where = f"tensors[{i}].models.{name}"
            if name not in checks.models:
                yield f"{where}: there is no model {name!r}{nearest(name, checks.models)}"
            yield from checks.model(_mapping(own), where, some_tensors=True)
    if content.get("seed") is not None and "seed" not in declared.model_fields:
        yield f"seed: {declared.name} draws nothing at random; leave it out"
    if content.get("seed") is not None and "seed" in _mapping(content.get("parameters")):
        yield "seed: is given twice, here and in parameters; leave one out"


@dataclass(frozen=True, slots=True)
class _Checks:
    """What parameters are checked against: the method, the models' names, and the method with what of it is sound."""

    declared: type[Method]
    models: list[str]
    whole: Method | None

    @classmethod
    def of(cls, declared: type[Method], content: Mapping[str, Any]) -> _Checks:
        models, parameters = list(_mapping(content.get("models"))), plain(_mapping(content.get("parameters")))
        sound = {n: value for n, value in parameters.items() if not section_problems(declared, {n: value}, "", models)}
        whole = None
        with suppress(InputError):  # how they go together is looked at when all are known
            whole = build(declared, at_depth(sound, Fraction(0)))
        return cls(declared, models, whole)

    def section(self, values: Any, where: str, *, some_tensors: bool = False) -> list[str]:
        """What is wrong with parameters given in one place."""
        values = plain(_mapping(values))
        problems = section_problems(self.declared, values, where, self.models)
        return problems + self._fixed(values, where, some_tensors)

    def model(
        self, own: Mapping[str, Any], where: str, beside: Sequence[str] = (), *, some_tensors: bool = False
    ) -> Iterator[str]:
        """What is wrong with one model's own parameters; `beside` are other keys that may stand there."""
        parameters = singular(self.declared)
        known = [*beside, *parameters]
        for name, value in own.items():
            if name not in parameters:
                there = f"there are {', '.join(known)}" if known else f"{self.declared.name} has no parameters by model"
                yield f"{where}.{name}: a model has no {name!r} of its own{nearest(name, known)}; {there}"
                continue
            for fault in value_faults(self.declared, parameters[name], plain(value), (name,), single=True):
                yield problem(self.declared, fault, where)
            yield from self._fixed({parameters[name]: value}, where, some_tensors)

    def _fixed(self, values: Mapping[str, Any], where: str, some_tensors: bool) -> list[str]:
        known = {name: value for name, value in values.items() if name in self.declared.model_fields}
        return fixed_problems(self.whole, known, where, some_tensors=some_tensors) if self.whole else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
