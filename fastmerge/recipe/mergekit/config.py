"""What may stand in a configuration, and where. What stands in `parameters` is looked at when the method is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ...errors import InputError, nearest
from ...methods._faults import Fault, faults

KEY = "merge_method"  # by which a configuration is known
Settings = dict[str, Any]
Dtype = Literal["bfloat16", "float16", "float32", "float64"]


def _model(value: Any) -> Any:
    """mergekit's long form {model: {path: …, revision: …}, lora: {path: …}} as its short one, PATH@REVISION+LORA."""
    if not isinstance(value, Mapping):
        return value
    if "model" not in value:
        return _place(value)
    known = {"model", "lora"}
    if value.get("override_architecture") is not None:
        raise ValueError("override_architecture is not known here: tensors are matched by their names")
    unknown = [key for key in value if key not in {*known, "override_architecture"}]
    if unknown:
        raise ValueError(f"there is no {unknown[0]!r} of a model{nearest(str(unknown[0]), known)}")
    lora = value.get("lora")
    return _place(value["model"]) + ("" if lora is None else f"+{_place(lora)}")


def _place(value: Any) -> str:
    if isinstance(value, str):
        return value
    known = isinstance(value, Mapping) and set(value) <= {"path", "revision"}
    path, revision = (value.get("path"), value.get("revision")) if known else (None, None)
    if not isinstance(path, str):
        raise ValueError("expected a path, or a mapping of path and revision")
    return path if revision is None else f"{path}@{revision}"


def _bare_dtype(value: Any) -> Any:
    return value.removeprefix("torch.") if isinstance(value, str) else value


Reference = Annotated[str, BeforeValidator(_model), Field(min_length=1)]
DtypeName = Annotated[Dtype, BeforeValidator(_bare_dtype)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Part):
    """Layers of a model, from the first to the one before the last."""

    model: Reference
    layer_range: tuple[int, int]
    parameters: Settings | None = None


class InputModel(_Part):
    """A model, whole."""

    model: Reference
    parameters: Settings | None = None


class Slice(_Part):
    """Layers of the result, and the layers of the models that they are merged from."""

    sources: list[Source] = Field(min_length=1)
    base_model: Reference | None = None
    residual_weight: None = None
    parameters: Settings | None = None


class Module(_Part):
    """A stack of layers of the result with what belongs to it."""

    slices: list[Slice] | None = Field(None, min_length=1)
    models: list[InputModel] | None = Field(None, min_length=1)
    parameters: Settings | None = None


class _TokenizerPart(_Part):
    """A part of the section `tokenizer`."""


class ModelToken(_TokenizerPart):
    """The row of a model's token."""

    kind: Literal["model_token"]
    model: Reference
    token_id: int | None = Field(None, ge=0)
    token: str | None = None


class Zero(_TokenizerPart):
    """A row of zeros."""

    kind: Literal["zero"]


def _token_source(value: Any) -> Any:
    """A model in its long form, which has no `kind`."""
    return _model(value) if isinstance(value, Mapping) and "kind" not in value else value


class Token(_TokenizerPart):
    """Where models that lack a token have its row from; `force`: all of them."""

    source: Annotated[ModelToken | Zero | str | None, BeforeValidator(_token_source)] = None
    force: bool = False


class Tokenizer(_TokenizerPart):
    """The result's tokens: base's, a model's, or those of all ("union")."""

    source: Reference = "union"
    tokens: dict[str, Token] | None = None
    pad_to_multiple_of: Annotated[int, Field(ge=1)] | None = None


class MergekitConfig(_Part):
    """A configuration. Raises InputError with every problem of its form, each with its path."""

    merge_method: str
    base_model: Reference | None = None
    models: list[InputModel] | None = Field(None, min_length=1)
    slices: list[Slice] | None = Field(None, min_length=1)
    modules: dict[str, Module] | None = Field(None, min_length=1)
    dtype: DtypeName | None = None
    out_dtype: DtypeName | None = None
    tokenizer_source: Reference | None = None
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None
    parameters: Settings | None = None

    def __init__(self, /, **content: Any) -> None:
        try:
            super().__init__(**content)
        except ValidationError as error:
            raise InputError([_structural(fault) for fault in faults(error, content)]) from None
        problems = list(self._problems())
        if problems:
            raise InputError(problems)

    @property
    def tokens(self) -> Tokenizer | None:
        """What is said of the tokenizer, in whichever way."""
        if self.tokenizer_source is not None:
            return Tokenizer(source=self.tokenizer_source)
        return self.tokenizer

    def references(self) -> list[str]:
        """All models, in the order in which they are named, base first."""
        parts: list[InputModel | Source] = []
        for module in self.blocks().values():
            parts += module.models or []
            parts += [source for own in module.slices or [] for source in own.sources]
        slices = [own for module in self.blocks().values() for own in module.slices or []]
        bases = [self.base_model, *(own.base_model for own in slices)]
        return list(dict.fromkeys([name for name in bases if name] + [part.model for part in parts]))

    def blocks(self) -> dict[str, Module]:
        """What is merged by module; where no modules are named, there is one of no name."""
        return self.modules or {"": Module(models=self.models, slices=self.slices)}

    def scopes(self) -> Iterator[tuple[str, Settings, bool]]:
        """Every place that parameters are given in, by its path, and whether it is a model's."""
        yield "parameters", self.parameters or {}, False
        for name, module in self.blocks().items():
            where = f"modules.{name}." if name else ""
            if name:
                yield f"{where}parameters", module.parameters or {}, False
            for i, model in enumerate(module.models or []):
                yield f"{where}models[{i}].parameters", model.parameters or {}, True
            for i, own in enumerate(module.slices or []):
                yield f"{where}slices[{i}].parameters", own.parameters or {}, False
                for j, source in enumerate(own.sources):
                    yield f"{where}slices[{i}].sources[{j}].parameters", source.parameters or {}, True

    def _problems(self) -> Iterator[str]:
        given = [name for name in ("models", "slices", "modules") if getattr(self, name)]
        if len(given) != 1:
            there = f"{' and '.join(given)} are given" if given else "none is given"
            yield f"give one of models, slices and modules: {there}"
        for name, module in (self.modules or {}).items():
            if (module.models is None) == (module.slices is None):
                yield f"modules.{name}: give either models or slices"
        if self.tokenizer_source is not None and self.tokenizer is not None:
            yield "tokenizer_source and tokenizer say the same thing; leave one out"


def _structural(fault: Fault) -> str:
    if fault.kind == "unknown":
        name, names = str(fault.path[-1]), list(_known(fault).model_fields)
        if name == "random_seed":  # of programs that call mergekit; many published configurations have it
            return f"{fault.place}: mergekit ignores it; leave it out, or ask for it by parameters: {{seed: N}}"
        return f"{fault.place}: there is no {name!r} here{nearest(name, names)}; there are {', '.join(names)}"
    if fault.path[-1:] == ("residual_weight",):
        return f"{fault.place}: has no effect in mergekit; leave it out"
    return f"{fault.place} {'is needed' if fault.kind == 'missing' else fault.text}"


def _known(fault: Fault) -> type[BaseModel]:
    """The part of a configuration that a fault's last key stands in."""
    parents = [part for part in fault.path[:-1] if isinstance(part, str)]
    if not parents:
        return MergekitConfig
    if parents[0] == "tokenizer":
        if parents[-1] == "source":
            return ModelToken
        return Token if "tokens" in parents else Tokenizer
    if parents[0] == "modules" and len(parents) == 2:
        return Module
    parts: dict[str, type[BaseModel]] = {"models": InputModel, "slices": Slice, "sources": Source}
    return parts.get(parents[-1], MergekitConfig)
