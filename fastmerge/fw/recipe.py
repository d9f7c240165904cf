"""A whole run of FW-Merging as data, from a YAML file: a Hugging Face model, a pool, and texts for each task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError

from ..errors import InputError, attempt, nearest
from ..formats.spec import parse_spec
from ..methods._faults import Fault, faults
from ..recipe.yaml_file import read_yaml

Loss = Literal["causal_lm", "cross_entropy", "entropy"]


def _entry(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _named(value: Any) -> Any:
    """A pool as a list is named by what its members are called."""
    if not isinstance(value, list) or not all(isinstance(path, str) for path in value):
        return value
    names = [Path(path).name for path in value]
    if len({*names}) < len(names):
        raise ValueError("members are called the same; give them names (NAME: PATH)")
    return dict(zip(names, value, strict=True))


class DataEntry(BaseModel):
    """Texts of a task: the file alone, or with a weight or a loss of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description='JSONL of {"text": …}, or {"text": …, "label": …}; relative to the recipe')
    weight: float = Field(default=1.0, ge=0, description="of the task in the loss")
    loss: Loss | None = Field(default=None, description="the recipe's by default")


class Recipe(BaseModel):
    """Raises InputError with every problem, each with its path. Paths are relative to the recipe's file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="a Hugging Face model with its tokenizer, θ_0: a folder, or a Hub name")
    pool: Annotated[dict[str, str], BeforeValidator(_named, json_schema_input_type=list[str] | dict[str, str])] = Field(
        description="checkpoints: folders, .safetensors files or Hub names, by the names they get", min_length=1
    )
    data: dict[str, Annotated[DataEntry, BeforeValidator(_entry, json_schema_input_type=str | DataEntry)]] = Field(
        description="the texts of each task", min_length=1
    )
    loss: Loss = Field(
        default="causal_lm", description="what is made small: of the texts, their labels, or the model's doubt"
    )
    parameters: dict[str, Any] = Field(default={}, description="of fm.frank_wolfe: variant, lmo, steps, …")
    skip_misfits: bool = Field(default=False, description="leave out members with other tensors or shapes")
    samples: int | None = Field(default=None, ge=1, description="of each task, the first ones; all by default")
    batch_size: int = Field(default=8, ge=1)
    max_length: int = Field(default=512, ge=2, description="tokens after which a text is cut off")
    device: str = "auto"

    _file: Path | None = PrivateAttr(None)

    def __init__(self, /, **content: Any) -> None:
        try:
            super().__init__(**content)
        except ValidationError as error:
            raise InputError(_told(fault) for fault in faults(error, content)) from None

    @classmethod
    def read(cls, file: str | Path) -> Recipe:
        """The recipe in a YAML (or JSON) file."""
        file, problems = Path(file).expanduser(), list[str]()
        content = {key: value for key, value in read_yaml(file).items() if value is not None}
        recipe = attempt(problems, lambda: cls(**content))
        if recipe is None:
            raise InputError(f"{file}: {problem}" for problem in problems)
        recipe._file = file
        return recipe

    @property
    def own_files(self) -> list[Path]:
        """The recipe's own file, if it has one, and the files of its texts."""
        texts = [Path(self.located(entry.path)) for entry in self.data.values()]
        return [*([] if self._file is None else [self._file]), *texts]

    def located(self, path: str) -> str:
        """A path relative to the recipe's file; a Hub name stays what it is."""
        folder = Path() if self._file is None else self._file.parent
        spec = str(parse_spec(path, folder).relative_to(folder))
        return str(Path(spec).expanduser()) if spec.startswith("~") else spec


def _told(fault: Fault) -> str:
    if fault.kind == "unknown":
        known = list((DataEntry if fault.path[0] == "data" and len(fault.path) > 2 else Recipe).model_fields)
        name = str(fault.path[-1])
        return f"{fault.place}: there is no {name!r} here{nearest(name, known)}; there are {', '.join(known)}"
    return f"{fault.place} {'is needed' if fault.kind == 'missing' else fault.text}"


def unknown_parameters(given: Mapping[str, Any], known: list[str]) -> list[str]:
    """Parameters that there are not."""
    return [
        f"parameters.{name}: there is no such parameter{nearest(name, known)}; there are {', '.join(known)}"
        for name in given
        if name not in known
    ]
